//! HTTP/2 in plaintext by prior knowledge (LIS-19), bounded (T-36, T-37).

use std::error::Error;
use std::io;
use std::pin::pin;
use std::sync::Arc;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::account::{AccessLog, Flag};
use crate::origin::Origin;
use crate::sniff::prefixed::Prefixed;

use super::exchange::Session;
use super::framing::HEAD_MAX;
use super::wire::{HEAD_DEADLINE, IDLE_LIMIT, Shared};
use super::{World, unread_record};

/// What a connection of this protocol starts with, as far as one line.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0";
/// Requests that a client may have under way at once.
const STREAMS_MAX: u32 = 100;

/// Serves `client` until it ends. The library bounds resets, pings, settings and continuations.
pub(super) async fn serve<W: World>(
    client: Prefixed<TcpStream>,
    origin: Origin,
    log: AccessLog,
    world: W,
) {
    let shared = Arc::new(Shared::default());
    let session = Arc::new(Session::new(world, origin, log, Arc::clone(&shared)));
    let serving = Arc::clone(&session);
    let mut connection = pin!(
        http2::Builder::new(TokioExecutor::new())
            .auto_date_header(false)
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEAD_MAX as u32)
            .serve_connection(
                TokioIo::new(client),
                service_fn(move |request| Arc::clone(&serving).answer(request)),
            )
    );
    // The first request has the deadline of a head; after that the connection may idle.
    let (mut limit, mut leaving) = (HEAD_DEADLINE, false);
    let result = loop {
        match timeout(limit, &mut connection).await {
            Ok(result) => break result,
            Err(_) if leaving && !shared.busy() => break Ok(()),
            Err(_) if leaving => {}
            Err(_) if shared.busy() => limit = IDLE_LIMIT,
            Err(_) if limit == HEAD_DEADLINE && shared.spoken() => limit = IDLE_LIMIT,
            Err(_) => {
                // Says good-bye, and waits a little for a client that is listening.
                connection.as_mut().graceful_shutdown();
                (limit, leaving) = (HEAD_DEADLINE, true);
            }
        }
    };
    if result.is_err_and(|error| !is_io(&error)) {
        let ending = (0, Flag::DPE, "http2.protocol_error");
        session.log.write(unread_record(&session.origin, "HTTP/2", ending));
    }
}

/// Whether the connection just broke, which is nobody's fault against the protocol.
fn is_io(error: &hyper::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if error.is::<io::Error>() {
            return true;
        }
        cause = error.source();
    }
    false
}
