//! A tunnel through an HTTP proxy: CONNECT, or POST where a rule wants that (GW-20 to GW-23, RFC 9110
//! 9.3.6). What is asked for is made of judged names and of configuration, never of a client's bytes
//! (T-47).

use std::io;
use std::net::IpAddr;

use bytes::Bytes;
use http::HeaderValue;
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::decide::traffic::Tunnel;

/// A proxy's answer may be this long.
const ANSWER_MAX: usize = 16 * 1024;

/// Why a proxy gave no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum NoTunnel {
    /// It said no.
    #[error("the proxy answered {0}")]
    Answered(u16),
    /// It answered without end.
    #[error("the proxy's answer is too long")]
    TooLong,
    /// It answered in no HTTP.
    #[error("the proxy does not speak HTTP")]
    Garbage,
    /// It hung up, before its answer or amid it.
    #[error("the proxy closed before it had answered")]
    Closed,
    /// It did not answer in time.
    #[error("the proxy did not answer in time")]
    Late,
    /// The rule asks for what there is not.
    #[error("tunnels by POST are made in HTTP/1.1 only")]
    PostInHttp2,
    /// The connection to it broke.
    #[error("the connection to the proxy broke: {0}")]
    Broken(io::Error),
}

impl From<io::Error> for NoTunnel {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Closed,
            _ => Self::Broken(error),
        }
    }
}

/// What a proxy is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    post: bool,
    /// As an authority.
    target: String,
    /// `Proxy-Authorization`; marked as sensitive.
    authorization: Option<HeaderValue>,
}

impl Request {
    /// As a DestinationRule has it.
    pub(super) fn of_rule(tunnel: &Tunnel) -> Self {
        let target = match tunnel.host.parse::<IpAddr>() {
            Ok(IpAddr::V6(ip)) => format!("[{ip}]:{}", tunnel.port),
            _ => format!("{}:{}", tunnel.host, tunnel.port),
        };
        Self { post: tunnel.post, target, authorization: None }
    }

    /// CONNECT to `target`, an authority.
    pub(super) fn connect(target: &str, authorization: Option<HeaderValue>) -> Self {
        Self { post: false, target: target.to_owned(), authorization }
    }

    fn head(&self) -> Vec<u8> {
        let line = match self.post {
            false => format!("CONNECT {} HTTP/1.1", self.target),
            true => "POST / HTTP/1.1".to_owned(),
        };
        let mut head = format!("{line}\r\nHost: {}\r\n", self.target).into_bytes();
        if let Some(authorization) = &self.authorization {
            head.extend(b"Proxy-Authorization: ");
            head.extend(authorization.as_bytes());
            head.extend(b"\r\n");
        }
        head.extend(b"\r\n");
        head
    }
}

/// Asks the proxy at the other end of `stream` in HTTP/1.1 for the tunnel. Afterwards the stream's
/// next byte is the tunnel's first: nothing beyond the answer's head is read.
///
/// # Errors
/// [`NoTunnel`].
pub(super) async fn ask_http1<S>(stream: &mut S, request: &Request) -> Result<(), NoTunnel>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(&request.head()).await?;
    stream.flush().await?;
    loop {
        match read_status(stream).await? {
            // No other protocol was asked for.
            101 => return Err(NoTunnel::Answered(101)),
            100..=199 => {}
            200..=299 => return Ok(()),
            status => return Err(NoTunnel::Answered(status)),
        }
    }
}

/// Reads one response head, byte by byte so that what follows stays unread, and gives its status.
async fn read_status<S: AsyncRead + Unpin>(stream: &mut S) -> Result<u16, NoTunnel> {
    let mut head = Vec::with_capacity(256);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == ANSWER_MAX {
            return Err(NoTunnel::TooLong);
        }
        head.push(stream.read_u8().await?);
        // What cannot become an answer any more is not waited for.
        if !head.starts_with(b"HTTP/") && !b"HTTP/".starts_with(&head) {
            return Err(NoTunnel::Garbage);
        }
    }
    let mut headers = [httparse::EMPTY_HEADER; 100];
    let mut response = httparse::Response::new(&mut headers);
    match response.parse(&head) {
        Ok(httparse::Status::Complete(_)) => response.code.ok_or(NoTunnel::Garbage),
        _ => Err(NoTunnel::Garbage),
    }
}

/// The same in HTTP/2 (GW-21): the tunnel is one stream of a connection of its own.
///
/// # Errors
/// As for HTTP/1.1; POST is spoken in HTTP/1.1 only.
pub(super) async fn ask_http2<S>(
    stream: S,
    request: &Request,
) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static, NoTunnel>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    if request.post {
        return Err(NoTunnel::PostInHttp2);
    }
    let broken = |error: hyper::Error| NoTunnel::Broken(io::Error::other(error));
    let (mut sender, driver) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    // Ends with the tunnel: the library closes the connection when its last stream is gone.
    tokio::spawn(async move {
        let _ = driver.await;
    });
    let connect = http::Request::connect(request.target.as_str())
        .version(http::Version::HTTP_2)
        .body(Empty::new())
        .map_err(|error| NoTunnel::Broken(io::Error::other(error)))?;
    let response = sender.send_request(connect).await.map_err(broken)?;
    if !response.status().is_success() {
        return Err(NoTunnel::Answered(response.status().as_u16()));
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(broken)?;
    Ok(TokioIo::new(upgraded))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn gw_20_connect_reads_not_one_byte_too_many() {
        let tunnel = Tunnel { post: false, host: "a.com".into(), port: 443 };
        let (mut ours, mut proxy) = tokio::io::duplex(1024);
        let asking = tokio::spawn(async move {
            ask_http1(&mut ours, &Request::of_rule(&tunnel)).await.expect("a tunnel");
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
            assert!(ask_http1(&mut ours, &Request::of_rule(&tunnel)).await.is_err(), "{answer}");
            drop(ours);
            let mut asked = String::new();
            proxy.read_to_string(&mut asked).await.expect("a request");
            assert_eq!(asked, "POST / HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n\r\n");
        }
    }
}
