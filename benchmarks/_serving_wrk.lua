-- The request that wrk sends again and again, and its figures as a last line of JSON.
--
-- WRK_BODY is the body of the request. WRK_PORTS are ports of this machine; the threads of wrk use
-- them in turn.
local ports = {}
for port in os.getenv("WRK_PORTS"):gmatch("%d+") do
  table.insert(ports, port)
end
local threads = 0

wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = os.getenv("WRK_BODY")

function setup(thread)
  thread.addr = wrk.lookup("127.0.0.1", ports[threads % #ports + 1])[1]
  threads = threads + 1
end

function done(summary, latency)
  local errors = summary.errors
  print(string.format(
    '{"requests": %d, "seconds": %f, "failed": %d, "p50_us": %d, "p99_us": %d}',
    summary.requests,
    summary.duration / 1e6,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50),
    latency:percentile(99)))
end
