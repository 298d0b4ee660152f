//! Real clients of protocols on top of HTTP.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, bail};
use futures_util::{SinkExt, StreamExt};
use hyper::http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use tokio_stream::wrappers::ReceiverStream;
use tokio_tungstenite::tungstenite::Message;
use tonic::Request;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_prost::ProstCodec;

use super::PATIENCE;
use crate::servers::protocols::{CHANGING, ILL, TALK, TALK_METADATA};

/// How many states of a watched service are waited for.
const STATES: usize = 5;
/// How many messages a talk has; each waits for the answer to the one before.
const MESSAGES: usize = 20;

/// A unary call, a call that fails with a status in its trailers, a server's stream, and streams
/// both ways at once that end with metadata in the trailers.
pub(super) fn grpc(to: SocketAddr, authority: &str) -> Result<String> {
    runtime()?.block_on(async {
        let endpoint = Endpoint::from_shared(format!("http://{authority}"))?.timeout(PATIENCE);
        let connector = tower::service_fn(move |_: tonic::transport::Uri| async move {
            tokio::net::TcpStream::connect(to).await.map(TokioIo::new)
        });
        let channel = endpoint.connect_with_connector(connector).await?;
        let mut client = HealthClient::new(channel.clone());
        let asked = |service: &str| HealthCheckRequest { service: service.to_owned() };

        let known = client.check(asked(ILL)).await.context("the unary call")?;
        let known = known.into_inner().status();
        let unknown = match client.check(asked("nobody")).await {
            Ok(answer) => bail!("a status was expected, not {answer:?}"),
            Err(status) => status.code(),
        };
        let mut states = client.watch(asked(CHANGING)).await.context("the stream")?.into_inner();
        for number in 0..STATES {
            states.message().await?.with_context(|| format!("no state number {number}"))?;
        }
        let last = talk(channel).await.context("streams both ways")?;
        let known = known.as_str_name();
        Ok(format!("{known} {unknown:?} {STATES} states {MESSAGES} messages {last}"))
    })
}

/// Sends messages of up to 100 KB, each after the answer to the one before; what the trailers say.
async fn talk(channel: Channel) -> Result<String> {
    let mut client = Grpc::new(channel);
    client.ready().await?;
    let (send, messages) = tokio::sync::mpsc::channel(1);
    let (path, codec) = (PathAndQuery::from_static(TALK), ProstCodec::default());
    let request = Request::new(ReceiverStream::new(messages));
    let mut answers = client.streaming(request, path, codec).await?.into_inner();
    for number in 0..MESSAGES {
        let said = HealthCheckRequest { service: number.to_string().repeat(number * 2_500) };
        send.send(said.clone()).await?;
        let heard: Option<HealthCheckRequest> = answers.message().await?;
        if heard.as_ref() != Some(&said) {
            bail!("message {number} came back otherwise");
        }
    }
    drop(send);
    match answers.message().await {
        Ok(answer) => bail!("a status was expected, not {answer:?}"),
        Err(status) => {
            let word = status.metadata().get(TALK_METADATA.0).context("no metadata")?.to_str()?;
            Ok(format!("{:?} {:?} {word}", status.code(), status.message()))
        }
    }
}

/// A WebSocket that sends `count` messages of each kind and compares what comes back.
pub(super) fn websocket(to: SocketAddr, host: &str, count: usize) -> Result<String> {
    runtime()?.block_on(async {
        let stream = tokio::net::TcpStream::connect(to).await?;
        let url = format!("ws://{host}/chat");
        let (mut socket, answer) = tokio_tungstenite::client_async(url, stream).await?;
        for number in 0..count {
            let large = vec![number as u8; 100_000];
            for sent in [Message::text(format!("number {number}")), Message::binary(large)] {
                socket.send(sent.clone()).await?;
                let came = socket.next().await.context("the socket ended")??;
                if came != sent {
                    bail!("message {number} came back changed");
                }
            }
        }
        socket.close(None).await?;
        Ok(format!("{} {} messages", answer.status().as_u16(), 2 * count))
    })
}

/// `count` requests on one connection, the hosts in turn; each answer must name its host.
pub(super) fn alternate(to: SocketAddr, hosts: &[String], count: usize) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answers = BufReader::new(stream.try_clone()?);
    for host in hosts.iter().cycle().take(count) {
        // In one piece: pieces of a head wait for each other's acknowledgement (Nagle).
        stream.write_all(format!("GET /headers HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())?;
        let (mut length, mut line) = (0, String::new());
        loop {
            line.clear();
            if answers.read_line(&mut line)? == 0 {
                bail!("the connection ended");
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        answers.read_exact(&mut body)?;
        if !String::from_utf8_lossy(&body).contains(host.as_str()) {
            bail!("the answer for {host} is another's");
        }
    }
    Ok(format!("{count} answers"))
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}
