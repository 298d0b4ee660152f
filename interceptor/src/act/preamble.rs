//! What goes ahead of the client's bytes on an upstream connection: the PROXY protocol (DR-16) and
//! a CONNECT or POST to a proxy (GW-20 to GW-23).

use std::io;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::decide::traffic::{ProxyProtocol, Tunnel};

/// A proxy's answer to CONNECT may be this long.
const ANSWER_MAX: usize = 16 * 1024;

/// The header that says who is connected to whom: `src` is the workload's end, `dst` what it
/// dialled.
pub(super) fn proxy_header(version: ProxyProtocol, src: SocketAddr, dst: SocketAddr) -> Vec<u8> {
    let ends = (src.ip().to_canonical(), dst.ip().to_canonical());
    match version {
        ProxyProtocol::V1 => {
            let family = match ends {
                (IpAddr::V4(_), IpAddr::V4(_)) => "TCP4",
                (IpAddr::V6(_), IpAddr::V6(_)) => "TCP6",
                _ => return b"PROXY UNKNOWN\r\n".to_vec(),
            };
            let (from, to) = (src.port(), dst.port());
            format!("PROXY {family} {} {} {from} {to}\r\n", ends.0, ends.1).into_bytes()
        }
        ProxyProtocol::V2 => {
            let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
            let mut addresses = Vec::with_capacity(36);
            let family = match ends {
                (IpAddr::V4(src), IpAddr::V4(dst)) => {
                    addresses.extend(src.octets());
                    addresses.extend(dst.octets());
                    0x11
                }
                (IpAddr::V6(src), IpAddr::V6(dst)) => {
                    addresses.extend(src.octets());
                    addresses.extend(dst.octets());
                    0x21
                }
                // Version 2, PROXY, but of no one family: the receiver uses the connection's own.
                _ => {
                    header.extend([0x21, 0x00, 0, 0]);
                    return header;
                }
            };
            addresses.extend(src.port().to_be_bytes());
            addresses.extend(dst.port().to_be_bytes());
            header.extend([0x21, family, 0, addresses.len() as u8]);
            header.extend(addresses);
            header
        }
    }
}

/// The tunnel's target as an authority: from the rule only, never from a client's bytes (T-47).
fn authority(tunnel: &Tunnel) -> String {
    match tunnel.host.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]:{}", tunnel.port),
        _ => format!("{}:{}", tunnel.host, tunnel.port),
    }
}

/// Asks the proxy at the other end of `stream` in HTTP/1.1 for the tunnel. Afterwards the stream's
/// next byte is the tunnel's first: nothing beyond the answer's head is read.
///
/// # Errors
/// The proxy hung up, said no, or did not speak HTTP.
pub(super) async fn tunnel_http1<S>(stream: &mut S, tunnel: &Tunnel) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let target = authority(tunnel);
    let line = match tunnel.post {
        false => format!("CONNECT {target} HTTP/1.1"),
        true => "POST / HTTP/1.1".to_owned(),
    };
    stream.write_all(format!("{line}\r\nHost: {target}\r\n\r\n").as_bytes()).await?;
    stream.flush().await?;
    loop {
        let status = read_status(stream).await?;
        match status {
            100..=199 => {}
            200..=299 => return Ok(()),
            _ => return Err(refused(status)),
        }
    }
}

/// Reads one response head, byte by byte so that what follows stays unread, and gives its status.
async fn read_status<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<u16> {
    let mut head = Vec::with_capacity(256);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == ANSWER_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the proxy's answer is too long",
            ));
        }
        head.push(stream.read_u8().await?);
    }
    let mut headers = [httparse::EMPTY_HEADER; 100];
    let mut response = httparse::Response::new(&mut headers);
    match response.parse(&head) {
        Ok(httparse::Status::Complete(_)) => response.code,
        _ => None,
    }
    .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the proxy does not speak HTTP"))
}

/// The same in HTTP/2 (GW-21): the tunnel is one stream of a connection of its own.
///
/// # Errors
/// As for HTTP/1.1; POST is spoken in HTTP/1.1 only.
pub(super) async fn tunnel_http2<S>(
    stream: S,
    tunnel: &Tunnel,
) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    if tunnel.post {
        let why = "tunnels by POST are made in HTTP/1.1 only";
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    }
    let (mut sender, driver) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    // Ends with the tunnel: the library closes the connection when its last stream is gone.
    tokio::spawn(async move {
        let _ = driver.await;
    });
    let request = http::Request::connect(authority(tunnel))
        .version(http::Version::HTTP_2)
        .body(Empty::new())
        .map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    if !response.status().is_success() {
        return Err(refused(response.status().as_u16()));
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(io::Error::other)?;
    Ok(TokioIo::new(upgraded))
}

fn refused(status: u16) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionRefused, format!("the proxy answered {status}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(version: ProxyProtocol, src: &str, dst: &str) -> Vec<u8> {
        proxy_header(version, src.parse().expect("an address"), dst.parse().expect("an address"))
    }

    #[test]
    fn dr_16_version_1() {
        for (src, dst, expected) in [
            ("10.0.0.1:4000", "192.0.2.1:80", "PROXY TCP4 10.0.0.1 192.0.2.1 4000 80\r\n"),
            ("[::ffff:10.0.0.1]:4000", "192.0.2.1:80", "PROXY TCP4 10.0.0.1 192.0.2.1 4000 80\r\n"),
            ("[2001:db8::1]:1", "[2001:db8::2]:2", "PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n"),
            ("[2001:db8::1]:1", "192.0.2.1:2", "PROXY UNKNOWN\r\n"),
        ] {
            assert_eq!(header(ProxyProtocol::V1, src, dst), expected.as_bytes(), "{src} {dst}");
        }
    }

    #[test]
    fn dr_16_version_2() {
        let signature = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a";
        let v4 = header(ProxyProtocol::V2, "10.0.0.1:4000", "192.0.2.1:80");
        assert_eq!(&v4[..12], signature);
        assert_eq!(v4[12..], [0x21, 0x11, 0, 12, 10, 0, 0, 1, 192, 0, 2, 1, 0x0f, 0xa0, 0, 80]);
        let v6 = header(ProxyProtocol::V2, "[2001:db8::1]:1", "[2001:db8::2]:2");
        assert_eq!((v6[13], v6[15], v6.len()), (0x21, 36, 52));
    }

    #[tokio::test]
    async fn gw_20_connect_reads_not_one_byte_too_many() {
        let tunnel = Tunnel { post: false, host: "a.com".into(), port: 443 };
        let (mut ours, mut proxy) = tokio::io::duplex(1024);
        let asking = tokio::spawn(async move {
            tunnel_http1(&mut ours, &tunnel).await.expect("a tunnel");
            let mut first = [0; 3];
            ours.read_exact(&mut first).await.expect("bytes");
            first
        });
        let wanted = b"CONNECT a.com:443 HTTP/1.1\r\nHost: a.com:443\r\n\r\n";
        let mut asked = vec![0; wanted.len()];
        proxy.read_exact(&mut asked).await.expect("a request");
        assert_eq!(asked, wanted);
        let answer =
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 Connection established\r\nX: y\r\n\r\nabc";
        proxy.write_all(answer).await.expect("writes");
        assert_eq!(&asking.await.expect("no panic"), b"abc");
    }

    #[tokio::test]
    async fn gw_23_what_is_no_tunnel() {
        let tunnel = Tunnel { post: true, host: "2001:db8::1".into(), port: 443 };
        for answer in
            ["HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "SSH-2.0-x\r\n\r\n", ""]
        {
            let (mut ours, mut proxy) = tokio::io::duplex(1024);
            proxy.write_all(answer.as_bytes()).await.expect("writes");
            proxy.shutdown().await.expect("shuts down");
            assert!(tunnel_http1(&mut ours, &tunnel).await.is_err(), "{answer}");
            drop(ours);
            let mut asked = String::new();
            proxy.read_to_string(&mut asked).await.expect("a request");
            assert_eq!(asked, "POST / HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n\r\n");
        }
    }
}
