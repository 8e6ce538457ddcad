"""What TensorFlow's servers on one machine need in their environment, whoever starts them."""

SERVER_ENVIRONMENT = {
    "TF_GRPC_REUSE_PORT": "1",  # the launcher holds the ports
    "GRPC_FAIL_FAST": "use_caller",  # a peer that is gone is an error, not a wait
    "no_grpc_proxy": "127.0.0.1,localhost",  # a proxy would break calls to this machine
}
