//! One HTTP connection with a request now and then, until somebody ends it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::header::{CONNECTION, HOST};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::crowd::{runtime, wait_for_the_end};

/// The pause between two requests.
const PACE: Duration = Duration::from_millis(20);

/// Either version's way of sending requests.
enum Sender {
    One(http1::SendRequest<Empty<Bytes>>),
    Two(http2::SendRequest<Empty<Bytes>>),
}

impl Sender {
    async fn connect(to: SocketAddr, http2: bool) -> Result<(Self, JoinHandle<hyper::Result<()>>)> {
        let stream = TokioIo::new(TcpStream::connect(to).await?);
        Ok(if http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
            (Self::Two(sender), tokio::spawn(connection))
        } else {
            let (sender, connection) = http1::handshake(stream).await?;
            (Self::One(sender), tokio::spawn(connection))
        })
    }

    async fn ready(&mut self) -> hyper::Result<()> {
        match self {
            Self::One(sender) => sender.ready().await,
            Self::Two(sender) => sender.ready().await,
        }
    }

    async fn send(&mut self, host: &str) -> hyper::Result<Response<Incoming>> {
        let request = |uri: String| Request::get(uri).body(Empty::new()).expect("a plain request");
        match self {
            Self::One(sender) => {
                let mut request = request("/".into());
                request.headers_mut().insert(HOST, host.try_into().expect("a plain name"));
                sender.send_request(request).await
            }
            Self::Two(sender) => sender.send_request(request(format!("http://{host}/"))).await,
        }
    }
}

/// Says `answered=N` and how it ended: `close=1` where the last answer said so, `goodbye=1` where HTTP/2
/// did, `ours=1` where standard input ended, `dropped=1` where nobody said anything.
pub(super) fn linger(to: SocketAddr, host: &str, http2: bool) -> Result<String> {
    runtime()?.block_on(async {
        let (mut sender, connection) = Sender::connect(to, http2).await?;
        let mut over = tokio::task::spawn_blocking(wait_for_the_end);
        let (mut answered, mut told) = (0, false);
        let end = loop {
            if sender.ready().await.is_err() {
                let orderly = connection.await?.is_ok();
                break match (told, http2 && orderly) {
                    (true, _) => "close",
                    (false, true) => "goodbye",
                    (false, false) => "dropped",
                };
            }
            let answer = match sender.send(host).await {
                Ok(answer) => answer,
                Err(error) if http2 && sender.ready().await.is_err() && error.is_canceled() => {
                    // Not sent any more.
                    continue;
                }
                Err(error) => bail!("request {answered}: {error:?}"),
            };
            if answer.status() != 200 {
                bail!("request {answered}: {}", answer.status());
            }
            told = answer.headers().get(CONNECTION).is_some_and(|value| value == "close");
            answer.into_body().collect().await?;
            answered += 1;
            tokio::select! {
                _ = &mut over => break "ours",
                () = sleep(PACE) => {}
            }
        };
        println!("answered={answered} {end}=1");
        // Whoever waits for standard input would keep the process.
        std::process::exit(0)
    })
}
