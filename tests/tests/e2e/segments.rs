//! A client whose segments arrive in another order than it has sent them in: what it says is read as one.

use clawgress_e2e::lab::Host;
use clawgress_e2e::plan::{API, SECRET, addresses};
use clawgress_e2e::scenario::{CRAWLER, Site};

use crate::support::{agent, denied, pair, record, to_host};

/// Ports that no client of the host is given by itself: its kernel knows nothing of these connections, and may not end them.
const PORTS: [u16; 2] = [61_000, 61_003];

/// TLS over a TCP that is made by hand, each flight of which goes out in pieces, the last one first.
const CLIENT: &str = r"
import socket, ssl, struct, sys, time
target, name, ca, port = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
six = ':' in target
wire = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
wire.connect((target, 0))
packed = [socket.inet_pton(wire.family, ip) for ip in (wire.getsockname()[0], target)]
FIN, SYN, RST, ACK = 1, 2, 4, 16
seq, ack, got, ended = 1000, 0, b'', False

def send(flags, at, data=b''):
    segment = struct.pack('!HHIIBBHHH', port, 443, at & 0xffffffff, ack, 5 << 4, flags, 60000, 0, 0) + data
    counted = packed[0] + packed[1] + struct.pack('!II', len(segment), 6) + segment + b'\0' * (len(segment) % 2)
    total = sum(struct.unpack('!%dH' % (len(counted) // 2), counted))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    wire.send(segment[:16] + struct.pack('!H', ~total & 0xffff) + segment[18:])

def receive(seconds):
    global ack, got, ended
    wire.settimeout(seconds)
    segment = wire.recv(1 << 16)
    if not six:
        segment = segment[(segment[0] & 15) * 4:]
    source, to, at, acked, offset, flags = struct.unpack('!HHIIBB', segment[:14])
    if (source, to) != (443, port):
        return None
    data = segment[(offset >> 4) * 4:]
    if flags & RST:
        ended = True
    elif flags & SYN:
        ack = at + 1
    elif at == ack and (data or flags & FIN):
        got += data
        ack = (ack + len(data) + (flags & FIN)) & 0xffffffff
        ended = ended or bool(flags & FIN)
        send(ACK, seq)
    return flags, acked

def until(done, again):
    for attempt in range(5):
        end, step = time.monotonic() + 2, None
        again()
        while time.monotonic() < end:
            try:
                step = receive(max(end - time.monotonic(), 0.01)) or step
            except TimeoutError:
                break
            if ended or (step and done(*step)):
                return
    sys.exit('no answer')

def flight(data):
    global seq
    pieces = [(seq + n, data[n:n + 60]) for n in range(0, len(data), 60)]
    def out():
        for at, piece in reversed(pieces):
            # The first is waited for when all others are there.
            time.sleep(0.1 if at == seq else 0.002)
            send(ACK, at, piece)
    until(lambda flags, acked: acked == seq + len(data), out)
    seq += len(data)

until(lambda flags, acked: flags & SYN and flags & ACK and acked == seq + 1, lambda: send(SYN, seq))
seq += 1
send(ACK, seq)
incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
tls = ssl.create_default_context(cafile=ca).wrap_bio(incoming, outgoing, server_hostname=name)
fed, answer = 0, b''
def step():
    global answer
    tls.do_handshake()
    if not answer:
        tls.write(b'GET /segments HTTP/1.1\r\nHost: ' + name.encode() + b'\r\nConnection: close\r\n\r\n')
        answer = b' '
        flight(outgoing.read())
    answer += tls.read(1 << 16)
try:
    while not answer.strip():
        try:
            step()
        except ssl.SSLWantReadError:
            if outgoing.pending:
                flight(outgoing.read())
            if fed == len(got):
                if ended:
                    sys.exit('the end')
                receive(8)
            incoming.write(got[fed:])
            fed = len(got)
    print(answer.decode().strip().split('\r\n')[0])
except ssl.SSLError as error:
    print(error.reason)
send(FIN | ACK, seq)
";

/// Segments that the gateway's kernel had to keep, since others before them were missing.
fn kept(site: &Site) -> u64 {
    let read = || std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    let text = site.gateway.lab.within(Host::Gateway, read).unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:")).map(str::split_whitespace);
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let (_, value) = names.zip(values).find(|(name, _)| *name == "TCPOFOQueue").unwrap();
    value.parse().unwrap()
}

/// Says TLS to a permitted and to a denied name, last segments first, over both families.
#[track_caller]
pub fn a_hello_whose_end_comes_first_is_read_as_one(site: &Site) {
    let lab = &site.gateway.lab;
    let rules = format!(
        "table inet quiet {{ chain out {{ type filter hook output priority 0; \
         tcp sport {}-{} tcp flags & rst == rst drop; }}\n}}",
        PORTS[0], PORTS[1]
    );
    lab.run(Host::Known, &["nft", &rules]).unwrap().check().unwrap();
    let ca = lab.ca().display().to_string();
    let mut ports = PORTS[0]..=PORTS[1];
    for (name, said) in [(API, "HTTP/1.1 200 OK"), (SECRET, "TLSV1_ALERT_ACCESS_DENIED")] {
        for address in addresses(name) {
            let (before, port) = (kept(site), ports.next().unwrap().to_string());
            let argv = ["python3", "-c", CLIENT, &address.to_string(), name, &ca, &port];
            let output = lab.run(Host::Known, &argv).unwrap();
            assert_eq!(output.stdout.trim(), said, "{address}: {output:?}");
            // A hello is of some hundred bytes.
            assert!(kept(site) >= before + 4, "they came in order");
        }
    }
    for is_six in [false, true] {
        let by = |r: &clawgress_api::AuditRecord| r.source.ip.is_some_and(|ip| ip.is_ipv6() == is_six);
        let (decision, _) = pair(site, "what was permitted", |r| to_host(r, API) && by(r));
        assert_eq!(agent(&decision), Some(CRAWLER));
        record(site, "what was denied", |r| to_host(r, SECRET) && by(r) && denied(r, "policy_denied"));
    }
}
