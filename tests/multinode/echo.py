"""A small server and its clients, for hosts of a test network: `python echo.py VERB ...`.

`serve`: echoes TCP and counts UDP datagrams, both at PORT; prints `ready`.
`ask HOST TIMEOUT SIZE`: connects, requests one byte six times and SIZE bytes once; prints JSON.
`hold HOST`: connects and prints `ready`; for each line of its input, a number of seconds, requests
a byte and prints whether the answer came within that time.
`send HOST COUNT`: sends COUNT datagrams.
"""

import json
import socket
import sys
import threading
import time

PORT = 2222


def serve():
    server = socket.create_server(("", PORT))
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("", PORT))
    received = []
    threading.Thread(target=keep, args=(datagrams, received), daemon=True).start()
    print("ready", flush=True)
    while True:
        connection, _ = server.accept()
        threading.Thread(target=answer, args=(connection, received), daemon=True).start()


def keep(datagrams, received):
    while True:
        received.append(datagrams.recv(64))


def answer(connection, received):
    while data := connection.recv(1 << 16):
        connection.sendall(data.replace(b"?", b"%d\n" % len(received)))


def connect(host, timeout):
    connection = socket.create_connection((host, PORT), timeout)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(30)
    return connection


def ask(host, timeout, size):
    begin = time.monotonic()
    try:
        connection = connect(host, float(timeout))
    except OSError as error:
        secs = time.monotonic() - begin
        print(json.dumps({"error": type(error).__name__, "errno": error.errno, "secs": secs}))
        return
    trips = []
    for _ in range(6):
        begin = time.monotonic()
        connection.sendall(b"x")
        connection.recv(1)
        trips.append(time.monotonic() - begin)
    begin, left = time.monotonic(), int(size)
    threading.Thread(target=connection.sendall, args=(b"y" * left,), daemon=True).start()
    while left:
        left -= len(connection.recv(1 << 16))
    secs = time.monotonic() - begin
    connection.sendall(b"?")
    print(json.dumps({"trips": trips, "secs": secs, "datagrams": int(connection.recv(16))}))


def hold(host):
    connection = connect(host, 10)
    print("ready", flush=True)
    owed = 0
    for line in sys.stdin:
        connection.settimeout(float(line))
        connection.sendall(b"x")
        owed += 1
        try:
            while owed:
                owed -= len(connection.recv(owed))
            print("answered", flush=True)
        except TimeoutError:
            print("silent", flush=True)


def send(host, count):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        for number in range(int(count)):
            datagrams.sendto(b"%d" % number, (host, PORT))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
