"""Delivery to HTTP endpoints: an output that answers for each message.

`url`, `template` and `body_template` read what the user wrote, `bodies` and `request` make bytes of
messages, `connection` and `pool` are the client, `proxy` and `tunnel` its way where there is no direct
one, `health` and `picking` say which endpoint is to be asked, `sender` carries that out, `following` goes
where `redirects` lead, `outcome` says what a reply means, and `output` joins them.

The client is our own because delivery is what this is for. Measured on two cores, 100 connections, 200
bytes a request, an endpoint on the same machine: aiohttp 8,400 requests/s (105 µs of CPU each),
pyreqwest 28,000 (29 µs), a parser in Python 57,000 (7.5 µs), this one, where llhttp (httptools) parses
the replies, 77,000 (6.3 µs). One client does it all: TLS, proxies, sockets of Unix, chunked and broken
replies.
"""
