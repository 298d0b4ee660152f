//! One HTTP/1 request as bytes, for what no well-behaved client would send.

use std::fmt::Write as _;
use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::case::Http;
use super::client::Exchange;

/// The longest answer that is read.
const MAX_ANSWER: usize = 1 << 20;

/// The request's head, exactly as the flow has it. The connection ends with its answer.
fn head(http: &Http) -> String {
    let version = http.version.as_deref().unwrap_or("1.1");
    let mut head = format!("{} {} HTTP/{version}\r\n", http.method, http.path);
    if let Some(host) = &http.host {
        // Writing to a String cannot fail.
        let _ = write!(head, "Host: {host}\r\n");
    }
    for (name, value) in &http.headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    head.push_str("Connection: close\r\n\r\n");
    head
}

/// Sends the request and takes its answer.
///
/// # Errors
/// When the connection breaks, or ends before an answer.
pub(super) async fn exchange<S>(
    mut stream: S,
    http: &Http,
    exchange: &mut Exchange,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(head(http).as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER as u64).read_to_end(&mut answer).await?;
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let Ok(httparse::Status::Complete(start)) = response.parse(&answer) else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    exchange.status = response.code;
    exchange.headers = response
        .headers
        .iter()
        .map(|header| {
            let value = String::from_utf8_lossy(header.value).into_owned();
            (header.name.to_ascii_lowercase(), value)
        })
        .collect();
    let body = &answer[start..];
    exchange.received += body.len() as u64;
    exchange.body = String::from_utf8_lossy(body).into_owned();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http() -> Http {
        serde_json::from_value(serde_json::json!({
            "path": "/a b", "host": "a\u{1b}", "headers": {"x": "\"\u{1b}[2J"},
        }))
        .expect("a request")
    }

    #[test]
    fn what_is_given_is_sent() {
        let expected =
            "GET /a b HTTP/1.1\r\nHost: a\u{1b}\r\nx: \"\u{1b}[2J\r\nConnection: close\r\n\r\n";
        assert_eq!(head(&http()), expected);
    }

    #[tokio::test]
    async fn the_answer_is_taken_apart() {
        for (answer, status) in [
            ("HTTP/1.1 400 Bad Request\r\nX-A: 1\r\ncontent-length: 2\r\n\r\nno", Some(400)),
            ("HTTP/1.1 400", None),
            ("", None),
        ] {
            let (near, mut far) = tokio::io::duplex(4096);
            far.write_all(answer.as_bytes()).await.expect("room");
            // Its reading side stays open: what is sent has to go somewhere.
            far.shutdown().await.expect("an end");
            let mut seen = Exchange::default();
            let done = exchange(near, &http(), &mut seen).await;
            assert_eq!((seen.status, done.is_ok()), (status, status.is_some()), "{answer}");
            if status.is_some() {
                assert_eq!(seen.body, "no");
                assert_eq!(seen.headers[0], ("x-a".to_owned(), "1".to_owned()));
            }
        }
    }
}
