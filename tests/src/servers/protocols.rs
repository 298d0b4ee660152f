//! Protocols on top of HTTP that real programs speak: gRPC and WebSocket.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{SinkExt, StreamExt};
use hyper::http;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{self, Message};
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_prost::ProstCodec;

/// The service that is never well, in the gRPC stub.
pub const ILL: &str = "ill";
/// The service whose health changes all the time.
pub const CHANGING: &str = "changing";

/// A gRPC method that streams both ways: every message comes back as it went out, and when the
/// client ends its stream the call ends with ABORTED, `that was all`, and [`TALK_METADATA`].
pub const TALK: &str = "/stub.Chat/Talk";
/// Name and value in the trailers of [`TALK`].
pub const TALK_METADATA: (&str, &str) = ("x-last-word", "goodbye");

/// gRPC's own health service, as any server has it. Whoever watches sees the state change.
pub(super) async fn grpc(stream: TcpStream) -> io::Result<()> {
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter.set_service_status(ILL, ServingStatus::NotServing).await;
    reporter.set_service_status(CHANGING, ServingStatus::NotServing).await;
    let changes = tokio::spawn(async move {
        loop {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            reporter.set_service_status(CHANGING, ServingStatus::Serving).await;
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            reporter.set_service_status(CHANGING, ServingStatus::NotServing).await;
        }
    });
    // The server stops when no further connection can come, so that stays open; the stub internet's
    // end ends it.
    let connection =
        tokio_stream::once(Ok::<_, io::Error>(stream)).chain(futures_util::stream::pending());
    let server = Server::builder().add_service(service).add_service(Chat);
    let served = server.serve_with_incoming(connection).await;
    changes.abort();
    served.map_err(io::Error::other)
}

/// [`TALK`]. Its messages are those of the health service, for want of a compiler of others.
#[derive(Clone)]
struct Chat;

impl NamedService for Chat {
    const NAME: &'static str = "stub.Chat";
}

impl tower::Service<http::Request<Body>> for Chat {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let codec = ProstCodec::<HealthCheckRequest, HealthCheckRequest>::default();
        Box::pin(async move { Ok(Grpc::new(codec).streaming(Talk, request).await) })
    }
}

struct Talk;

impl StreamingService<HealthCheckRequest> for Talk {
    type Response = HealthCheckRequest;
    type ResponseStream = BoxStream<'static, Result<HealthCheckRequest, Status>>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<HealthCheckRequest>>) -> Self::Future {
        let mut metadata = MetadataMap::new();
        let (name, value) = TALK_METADATA;
        metadata.insert(name, value.parse().expect("plain text"));
        let last = Status::with_metadata(Code::Aborted, "that was all", metadata);
        let answers = request.into_inner().chain(tokio_stream::once(Err(last)));
        ready(Ok(Response::new(answers.boxed())))
    }
}

/// Sends every message back, and answers a close.
pub(super) async fn websocket(stream: TcpStream) -> io::Result<()> {
    let mut socket = tokio_tungstenite::accept_async(stream).await.map_err(io::Error::other)?;
    while let Some(message) = socket.next().await {
        match message {
            Ok(message @ (Message::Text(_) | Message::Binary(_))) => {
                socket.send(message).await.map_err(io::Error::other)?;
            }
            Ok(_) => {}
            Err(tungstenite::Error::ConnectionClosed) => break,
            Err(error) => return Err(io::Error::other(error)),
        }
    }
    Ok(())
}
