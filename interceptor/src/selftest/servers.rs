//! Servers on the far side, which record what reaches them and answer in a word; and, for the room
//! without interceptor, a forwarder that believes what it is told.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::allowed::ECHO4;
use super::judge::Record;
use super::way::{DNS, HTTP, NAMED, NAMED4, NAMED6, RESOLVER, TCP, TLS, UDP};
use crate::netns::NetNs;

/// For how long more pieces are waited for.
const PIECES: Duration = Duration::from_millis(10);
/// How long a connection may be silent before its server leaves it: longer than a test takes, since
/// some are made before it begins.
const IDLE: Duration = Duration::from_secs(300);
/// Most that one connection is read of.
const MOST: usize = 1 << 20;
/// A record of TLS that says "handshake failure": all that a client needs here to know that somebody
/// is there.
const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 40];
/// What servers of no protocol say.
const GREETING: &[u8] = b"heard you\n";

/// The servers of one far side. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Servers {
    _tasks: JoinSet<()>,
}

impl Servers {
    /// Starts them in `far`.
    ///
    /// # Errors
    /// A port cannot be had.
    pub(super) fn start(far: &NetNs, record: &Record) -> io::Result<Self> {
        let mut tasks = JoinSet::new();
        for port in [TCP, TLS, HTTP, DNS] {
            let listener = listen(far, port)?;
            tasks.spawn(accept(listener, record.clone()));
        }
        let dns = datagrams(far, (RESOLVER, DNS).into())?;
        tasks.spawn(answer_datagrams(dns, dns_answer));
        let echo = datagrams(far, (ECHO4, UDP).into())?;
        tasks.spawn(answer_datagrams(echo, |_| Some(GREETING.to_vec())));
        Ok(Self { _tasks: tasks })
    }
}

/// On every address, both families.
fn listen(netns: &NetNs, port: u16) -> io::Result<TcpListener> {
    let socket = netns.run(|| {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_only_v6(false)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
        socket.listen(1024)?;
        socket.set_nonblocking(true)?;
        Ok::<_, io::Error>(socket)
    })??;
    TcpListener::from_std(socket.into())
}

fn datagrams(netns: &NetNs, at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = netns.run(|| std::net::UdpSocket::bind(at))??;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

async fn accept(listener: TcpListener, record: Record) {
    let mut open = JoinSet::new();
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            open.spawn(serve(stream, record.clone()));
        }
        while open.try_join_next().is_some() {}
    }
}

/// Records what comes and answers each piece that asks for something.
async fn serve(mut stream: TcpStream, record: Record) {
    let mut heard = Vec::new();
    let mut judged = 0;
    while heard.len() < MOST {
        match timeout(IDLE, stream.read_buf(&mut heard)).await {
            Ok(Ok(1..)) => {}
            _ => return,
        }
        // An answer to its first piece would have a client go, by a reset, that has sent them all.
        while heard.len() < MOST
            && let Ok(Ok(1..)) = timeout(PIECES, stream.read_buf(&mut heard)).await
        {}
        record.note(&heard);
        let answer = answer(&heard[judged..]);
        if let Some(answer) = answer {
            judged = heard.len();
            if stream.write_all(&answer).await.is_err() {
                return;
            }
        }
    }
}

/// The answer to what was heard since the last one; none yet where more must come.
fn answer(heard: &[u8]) -> Option<Vec<u8>> {
    match heard {
        [22, 3, _, ..] => Some(ALERT.to_vec()),
        [high, low, message @ ..]
            if usize::from(u16::from_be_bytes([*high, *low])) == message.len() =>
        {
            let answer = dns_answer(message)?;
            Some([&(answer.len() as u16).to_be_bytes()[..], &answer].concat())
        }
        _ if heard.starts_with(b"GET ") || heard.starts_with(b"POST ") => http_answer(heard),
        _ => Some(GREETING.to_vec()),
    }
}

fn http_answer(heard: &[u8]) -> Option<Vec<u8>> {
    let head = heard.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&heard[..head]);
    let path = head.split(' ').nth(1).unwrap_or_default();
    let answer = match path.strip_prefix("/redirect/") {
        Some(to) => {
            format!("HTTP/1.1 302 Found\r\nLocation: http://{to}/\r\nContent-Length: 0\r\n\r\n")
        }
        None => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned(),
    };
    Some(answer.into_bytes())
}

async fn answer_datagrams(socket: UdpSocket, answer: impl Fn(&[u8]) -> Option<Vec<u8>>) {
    let mut buffer = [0; 2048];
    loop {
        if let Ok((length, from)) = socket.recv_from(&mut buffer).await
            && let Some(answer) = answer(&buffer[..length])
        {
            // Who is gone needs none.
            let _ = socket.send_to(&answer, from).await;
        }
    }
}

/// Answers for [`NAMED`]; no other name exists. RFC 1035, section 4.1.
fn dns_answer(question: &[u8]) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    let mut name = Vec::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*question.get(at)?);
        if length == 0 {
            break;
        }
        name.push(String::from_utf8_lossy(question.get(at + 1..at + 1 + length)?).into_owned());
        at += 1 + length;
    }
    let asked = question.get(HEADER..at + 5)?;
    let kind = u16::from_be_bytes([*question.get(at + 1)?, *question.get(at + 2)?]);
    let known = name.join(".").eq_ignore_ascii_case(NAMED);
    let address: Option<Vec<u8>> = match kind {
        1 if known => Some(NAMED4.octets().to_vec()),
        28 if known => Some(NAMED6.octets().to_vec()),
        _ => None,
    };
    let mut answer = question.get(..2)?.to_vec();
    let code = if known { 0 } else { 3 };
    let count = u8::from(address.is_some());
    answer.extend_from_slice(&[0x81, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0]);
    answer.extend_from_slice(asked);
    if let Some(address) = address {
        let [high, low] = kind.to_be_bytes();
        answer.extend_from_slice(&[0xc0, HEADER as u8, high, low, 0, 1, 0, 0, 0, 60, 0]);
        answer.push(address.len() as u8);
        answer.extend_from_slice(&address);
    }
    Some(answer)
}

/// A forwarder in `netns` that goes wherever a client says: what a proxy's door would be if it
/// believed its clients. Gives the port, on every address.
///
/// # Errors
/// No port can be had.
pub(super) fn gullible(netns: &Arc<NetNs>, tasks: &mut JoinSet<()>) -> io::Result<u16> {
    let listener = listen(netns, 0)?;
    let port = listener.local_addr()?.port();
    let netns = Arc::clone(netns);
    tasks.spawn(async move {
        let mut open = JoinSet::new();
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                let netns = Arc::clone(&netns);
                open.spawn(async move {
                    // What becomes of it is seen at the far side.
                    let _ = forward(stream, &netns).await;
                });
            }
        }
    });
    Ok(port)
}

async fn forward(mut client: TcpStream, netns: &NetNs) -> io::Result<()> {
    let mut head = vec![0; 2048];
    let length = timeout(IDLE, client.read(&mut head)).await??;
    let to = wanted(&head[..length]).ok_or(io::ErrorKind::InvalidData)?;
    let socket = netns.run(TcpSocket::new_v4)??;
    let mut upstream = timeout(IDLE, socket.connect(to)).await??;
    upstream.write_all(&head[..length]).await?;
    timeout(IDLE, copy_bidirectional(&mut client, &mut upstream)).await??;
    Ok(())
}

/// Where a client's first bytes say that they want to go: a PROXY header, else Host.
fn wanted(head: &[u8]) -> Option<SocketAddr> {
    if let Some([a, b, c, d, _, _, high, low, ..]) =
        head.strip_prefix(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c").and_then(|rest| rest.get(4..))
    {
        let port = u16::from_be_bytes([*high, *low]);
        return Some((Ipv4Addr::new(*a, *b, *c, *d), port).into());
    }
    let text = String::from_utf8_lossy(head);
    let mut words = text.split_whitespace();
    if words.next()? == "PROXY" {
        let ip: IpAddr = words.nth(2)?.parse().ok()?;
        return Some((ip, words.nth(1)?.parse().ok()?).into());
    }
    text.lines().find_map(|line| line.strip_prefix("Host: "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selftest::udp::query;

    #[test]
    fn only_the_named_host_exists() {
        let answer = dns_answer(&query(NAMED)).unwrap();
        assert_eq!(answer[3] & 15, 0);
        assert!(answer.ends_with(&NAMED4.octets()));
        assert_eq!(dns_answer(&query("other.test")).unwrap()[3] & 15, 3);
        for length in 0..20 {
            let _ = dns_answer(&query(NAMED)[..length]);
        }
    }

    #[test]
    fn the_forwarder_believes_everything() {
        let to: SocketAddr = "192.0.2.7:9000".parse().unwrap();
        assert_eq!(wanted(b"GET / HTTP/1.1\r\nHost: 192.0.2.7:9000\r\n\r\n"), Some(to));
        assert_eq!(wanted(b"PROXY TCP4 10.0.0.1 192.0.2.7 77 9000\r\n"), Some(to));
        let mut binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\0\0\x01\xc0\0\x02\x07".to_vec();
        binary.extend_from_slice(&[0, 77, 0x23, 0x28]);
        assert_eq!(wanted(&binary), Some(to));
    }
}
