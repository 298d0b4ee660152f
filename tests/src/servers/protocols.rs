//! Protocols on top of HTTP that real programs speak: gRPC and WebSocket.

use std::io;

use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{self, Message};
use tonic::transport::Server;
use tonic_health::ServingStatus;

/// The service whose health the gRPC stub knows.
pub(super) const SERVICE: &str = "stub";

/// gRPC's own health service, as any server has it. Whoever watches sees the state change.
pub(super) async fn grpc(stream: TcpStream) -> io::Result<()> {
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter.set_service_status(SERVICE, ServingStatus::NotServing).await;
    let changes = tokio::spawn(async move {
        loop {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            reporter.set_service_status(SERVICE, ServingStatus::Serving).await;
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            reporter.set_service_status(SERVICE, ServingStatus::NotServing).await;
        }
    });
    // The server stops when no further connection can come, so that stays open; the stub internet's
    // end ends it.
    let connection =
        tokio_stream::once(Ok::<_, io::Error>(stream)).chain(futures_util::stream::pending());
    let served = Server::builder().add_service(service).serve_with_incoming(connection).await;
    changes.abort();
    served.map_err(io::Error::other)
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
