"""Reads what a host says of its network: ip, ifconfig, routes, ss and netstat, ping, nc, telnet, curl, iptables.

interface (interface, state, carrier, mtu, addresses, errors), route (destination, via, interface, source), listen (address, port,
name, pid), socket (state, peer: connections that are not established), ping (address, sent, received, loss),
mtu-limit (mtu), connect (address, port, reason: it failed), reached (address, port: it did not), firewall (verdict).

Reads
    log a.txt: 2: eth2: <NO-CARRIER,BROADCAST,MULTICAST,UP> mtu 9000 qdisc mq state DOWN group default qlen 1000
    log a.txt:     link/ether 02:42:0a:09:00:02 brd ff:ff:ff:ff:ff:ff
    log a.txt:     inet 10.9.0.2/24 brd 10.9.0.255 scope global eth2
    log a.txt:     inet6 fd00::9/64 scope global
    log a.txt: 3: docker0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500 qdisc noqueue state UP
    => interface interface=eth2 state=DOWN carrier=False mtu=9000 addresses=['10.9.0.2/24',_'fd00::9/64']
    => interface interface=docker0 mtu=1500

Reads
    log a.txt: lo               UNKNOWN        127.0.0.1/8 ::1/128
    log a.txt: eth2             UP             10.9.0.2/24 fe80::1/64
    => interface interface=eth2 state=UP addresses=['10.9.0.2/24',_'fe80::1/64']

Reads
    log a.txt: eth2: flags=4163<UP,BROADCAST,RUNNING,MULTICAST>  mtu 1500
    log a.txt:         inet 10.9.0.2  netmask 255.255.255.0  broadcast 10.9.0.255
    log b.txt: eth3      Link encap:Ethernet  HWaddr 02:42:0a:09:00:02
    log b.txt:           inet addr:10.9.1.2  Bcast:10.9.1.255  Mask:255.255.255.0
    => interface interface=eth2 addresses=['10.9.0.2'] mtu=1500
    => interface interface=eth3 addresses=['10.9.1.2']

Reads
    log a.txt: default via 10.9.0.254 dev eth2 proto dhcp metric 100
    log a.txt: 10.9.0.0/24 dev eth2 proto kernel scope link src 10.9.0.2
    log a.txt: 10.8.0.7 via 10.9.0.254 dev eth2 src 10.9.0.2 uid 0
    => route destination=default via=10.9.0.254 interface=eth2
    => route destination=10.9.0.0/24 interface=eth2 source=10.9.0.2

Reads
    log a.txt: LISTEN 0      128          0.0.0.0:29511      0.0.0.0:*    users:(("python",pid=5110,fd=9))
    log a.txt: SYN-SENT 0 1 10.9.0.2:41022 10.9.0.1:29511
    log a.txt: tcp        0      0 0.0.0.0:29512      0.0.0.0:*     LISTEN      5111/python3
    => listen address=0.0.0.0 port=29511 name=python pid=5110
    => listen port=29512 pid=5111
    => socket state=SYN-SENT peer=10.9.0.1:29511

Reads
    log a.txt: --- 10.9.0.1 ping statistics ---
    log a.txt: 5 packets transmitted, 0 received, +5 errors, 100% packet loss, time 4099ms
    log a.txt: ping: local error: message too long, mtu=1450
    log a.txt: From 10.9.0.254 icmp_seq=1 Frag needed and DF set (mtu = 1400)
    => ping address=10.9.0.1 sent=5 received=0 loss=100
    => mtu-limit mtu=1450
    => mtu-limit mtu=1400

Reads
    log a.txt: nc: connect to 10.9.0.1 port 29511 (tcp) failed: No route to host
    log a.txt: Connection to 10.9.0.1 29500 port [tcp/*] succeeded!
    log a.txt: curl: (7) Failed to connect to 10.9.0.1 port 8000 after 3 ms: Connection refused
    log a.txt: telnet: connect to address 10.9.0.3: Connection timed out
    log a.txt: bash: line 1: /dev/tcp/10.9.0.4/29511: No route to host
    log a.txt: -A INPUT -p tcp -m tcp --dport 1024:65535 -j DROP
    => connect address=10.9.0.1 port=29511 reason=No_route_to_host
    => reached address=10.9.0.1 port=29500
    => connect address=10.9.0.1 port=8000 reason=Connection_refused
    => connect address=10.9.0.3 reason=Connection_timed_out
    => connect address=10.9.0.4 port=29511
    => firewall verdict=DROP
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ncclcheck.evidence._reads import Block, Clue, Line
from ncclcheck.model import Fact

_IP = r"^\s*\d+: (?P<interface>[^\s:@]+)(?:@\S+)?: <(?P<flags>[A-Z0-9_,-]*)> mtu (?P<mtu>\d+)(?:.* state (?P<state>[A-Z]+))?"
_BRIEF = r"^lo\s+UNKNOWN\s"
_IFCONFIG = r"^(?P<interface>[^\s:]+(?::\d+)?): flags=\d+<(?P<flags>[A-Z,_]*)>\s+mtu (?P<mtu>\d+)"
_OLD_IFCONFIG = r"^(?P<interface>\S+)\s+Link encap:"
_ADDRESS = re.compile(r"^\s+inet6? (?:addr: ?)?(?P<address>[0-9a-fA-F.:]+(?:/\d+)?)")
_ERRORS = re.compile(r"^\s+(?P<way>[RT]X):? (?:.*? )?errors[ :](?P<errors>\d+)")
_PING = r"--- (?P<address>\S+) ping statistics ---"
_SS = r"^(?:tcp\s+|udp\s+)?LISTEN\s+\d+\s+\d+\s+(?P<address>\S+):(?P<port>\d+)\s(?:.*users:\(\(\"(?P<name>[^\"]*)\",pid=(?P<pid>\d+))?"
_NETSTAT = r"^tcp6?\s+\d+\s+\d+\s+(?P<address>\S+):(?P<port>\d+)\s+\S+\s+LISTEN(?:\s+(?P<pid>\d+)/(?P<name>\S+))?"


def _ip(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    if match := re.search(_IP, line.body) or re.search(_IP, line.text):
        flags = match["flags"].split(",")
        fields = {"interface": match["interface"], "mtu": int(match["mtu"]), "up": "UP" in flags}
        if "LOWER_UP" in flags or "NO-CARRIER" in flags or "UP" not in flags:
            fields["carrier"] = "LOWER_UP" in flags
        yield line.fact("interface", {**fields, **({"state": match["state"]} if match["state"] else {}), **_below(following, _IP)})


def _ifconfig(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    if match := re.search(_IFCONFIG, line.body):
        flags = match["flags"].split(",")
        fields = {"interface": match["interface"], "mtu": int(match["mtu"]), "up": "UP" in flags, "carrier": "RUNNING" in flags}
        yield line.fact("interface", {**fields, **_below(following, _IFCONFIG)})
    elif match := re.search(_OLD_IFCONFIG, line.body):
        yield line.fact("interface", {"interface": match["interface"], **_below(following, _OLD_IFCONFIG)})


def _below(following: Iterator[Line], next_one: str) -> dict[str, object]:
    """The addresses and error counts in the indented lines under an interface."""
    addresses: list[str] = []
    errors: dict[str, object] = {}
    for each in following:
        if not each.text.startswith((" ", "\t")) or re.search(next_one, each.body):
            break
        if match := _ADDRESS.match(each.text):
            addresses.append(match["address"])
        elif (match := _ERRORS.match(each.text)) and int(match["errors"]):
            errors[f"{match['way'].lower()}_errors"] = int(match["errors"])
    return {"addresses": addresses, **errors}


def _brief(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    """`ip -br addr` and `ip -br link`, known by its line for lo."""
    for each in following:
        match = re.match(r"^(?P<interface>[^\s@]+)(?:@\S+)?\s+(?P<state>UP|DOWN|UNKNOWN|LOWERLAYERDOWN|DORMANT)\b\s*(?P<rest>.*)$", each.body)
        if not match:
            return
        addresses = [word for word in match["rest"].split() if "/" in word]
        fields = {"interface": match["interface"], "state": match["state"], "carrier": match["state"] not in ("DOWN", "LOWERLAYERDOWN")}
        yield each.fact("interface", {**fields, "addresses": addresses})


def _ping(line: Line, following: Iterator[Line]) -> Iterator[Fact]:
    address = re.search(_PING, line.body)
    for _, each in zip(range(3), following, strict=False):
        if address and (match := re.search(r"(\d+) packets transmitted, (\d+) (?:packets )?received.*?([\d.]+)% packet loss", each.body)):
            fields = {"address": address["address"], "sent": int(match[1]), "received": int(match[2]), "loss": int(float(match[3]))}
            yield each.fact("ping", fields)
            return


READS = (
    Block(r"^\s*\d+: [^\s:]+: <[A-Z0-9_,-]*> mtu \d", _ip),
    Block(_BRIEF, _brief),
    Block(_IFCONFIG, _ifconfig),
    Block(_OLD_IFCONFIG, _ifconfig),
    Clue(
        "route",
        r"^\s*(?:(?:unicast|local) )?(?P<destination>default|\d+\.\d+\.\d+\.\d+(?:/\d+)?|[0-9a-f]*:[0-9a-f:]*(?:/\d+)?)"
        r"(?: via (?P<via>\S+))? dev (?P<interface>\S+)(?:.*? src (?P<source>\S+))?",
    ),
    Clue("listen", _SS),
    Clue("listen", _NETSTAT),
    Clue("socket", r"^(?:tcp\s+)?(?P<state>SYN-SENT|SYN-RECV|CLOSE-WAIT)\s+\d+\s+\d+\s+(?P<local>\S+)\s+(?P<peer>\S+)"),
    Block(_PING, _ping),
    Clue("mtu-limit", r"message too long, mtu[=:] ?(?P<mtu>\d+)"),
    Clue("mtu-limit", r"Frag(?:mentation)? needed and DF set \(mtu ?= ?(?P<mtu>\d+)\)"),
    Clue("connect", r"nc: connect to (?P<address>\S+) (?:\([^)]*\) )?port (?P<port>\d+) \(tcp\) (?:failed|timed out)(?:: (?P<reason>.*\w))?"),
    Clue("connect", r"curl: \(\d+\) Failed to connect to (?P<address>\S+) port (?P<port>\d+).*?: (?P<reason>[^:]+)$"),
    Clue("connect", r"telnet: connect to address (?P<address>[^\s:]+): (?P<reason>.+)"),
    Clue("connect", r"/dev/tcp/(?P<address>[^/]+)/(?P<port>\d+): (?P<reason>.+)"),
    Clue("reached", r"Connection to (?P<address>\S+) (?:\([^)]*\) )?(?P<port>\d+) port \[tcp/\S*\] succeeded"),
    Clue("firewall", r"^\s*-A (?P<chain>INPUT|OUTPUT|FORWARD|DOCKER-USER) (?P<match>.*)-j (?P<verdict>DROP|REJECT)"),
)
