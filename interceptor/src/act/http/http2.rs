//! HTTP/2 in plaintext by prior knowledge (LIS-19), bounded (T-36, T-37).

use std::error::Error;
use std::io;
use std::pin::pin;
use std::sync::Arc;

use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http::{HeaderValue, Method, Version};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::account::{AccessLog, Flag};
use crate::origin::Origin;
use crate::sniff::prefixed::Prefixed;

use super::exchange::Session;
use super::frames::Watched;
use super::framing::{self, HEAD_MAX, HEADERS_MAX, TARGET_MAX};
use super::reply::Reply;
use super::wire::{HEAD_DEADLINE, IDLE_LIMIT, Shared};
use super::{World, ending, unread_record};

/// What a connection of this protocol starts with, as far as one line.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0";
/// Requests that a client may have under way at once.
const STREAMS_MAX: u32 = 100;
/// Bytes of an answer that wait for a client that does not read (T-51).
const SEND_BUFFER: usize = 64 * 1024;

/// What the library lets pass and HTTP/1.1 has no one reading of, or no room for (T-36, T-37). It has
/// compared the body with its announced length, and refused headers that belong to a connection.
pub(super) fn check(parts: &Parts) -> Result<(), Reply> {
    if parts.version != Version::HTTP_2 {
        return Ok(());
    }
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    if parts.headers.len() > HEADERS_MAX || target.len() > TARGET_MAX {
        return Err(Reply::large_head());
    }
    let mut lengths = parts.headers.get_all(CONTENT_LENGTH).iter();
    let one_length = lengths.next().is_none_or(|length| {
        framing::content_length(length.as_bytes()).is_ok() && lengths.next().is_none()
    });
    // `target` reads as / where none was sent, while none would be forwarded.
    let was_sent = !parts.uri.path().is_empty();
    let has_target = match parts.method {
        Method::CONNECT => true,
        Method::OPTIONS => was_sent && (target.starts_with('/') || target == "*"),
        _ => was_sent && target.starts_with('/'),
    };
    // Else the next reader would take another value for it (RFC 9113 section 8.2.1).
    let is_trimmed = |value: &HeaderValue| {
        let blank = |end: Option<&u8>| end.is_some_and(|byte| matches!(byte, b' ' | b'\t'));
        !blank(value.as_bytes().first()) && !blank(value.as_bytes().last())
    };
    let trimmed = parts.headers.values().all(is_trimmed);
    let named = parts.headers.keys().all(|name| framing::is_name(name.as_str().as_bytes()));
    if one_length && has_target && trimmed && named { Ok(()) } else { Err(Reply::bad_head()) }
}

/// The HTTP library's server.
pub(super) fn library() -> http2::Builder<TokioExecutor> {
    let mut library = http2::Builder::new(TokioExecutor::new());
    library
        .auto_date_header(false)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_MAX as u32)
        .max_send_buf_size(SEND_BUFFER);
    library
}

/// Serves `client` until it ends. The library bounds what a head may be made of, and resets of
/// requests that it has not passed on; [`Watched`] bounds the rest.
pub(super) async fn serve<W: World>(
    client: Prefixed<TcpStream>,
    origin: Origin,
    log: AccessLog,
    world: W,
) {
    let shared = Arc::new(Shared::default());
    let session = Arc::new(Session::new(world, origin, log, Arc::clone(&shared)));
    let serving = Arc::clone(&session);
    let mut connection = pin!(library().serve_connection(
        TokioIo::new(Watched::new(client, Arc::clone(&shared))),
        service_fn(move |request| Arc::clone(&serving).answer(request)),
    ));
    let mut draining = pin!(draining(&session));
    // The first request has the deadline of a head; after that the connection may idle.
    let (mut limit, mut leaving) = (HEAD_DEADLINE, false);
    let result = loop {
        let waited = tokio::select! {
            waited = timeout(limit, &mut connection) => waited,
            () = &mut draining, if !leaving => {
                connection.as_mut().graceful_shutdown();
                (limit, leaving) = (HEAD_DEADLINE, true);
                continue;
            }
        };
        match waited {
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
    let library_refused = result.is_err_and(|error| !is_io(&error));
    let refused = library_refused.then_some((0, Flag::DPE, "http2.protocol_error"));
    if let Some(ending) = ending(shared.end(), false).or(refused) {
        session.log.write(unread_record(&session.origin, "HTTP/2", ending));
    }
}

/// Returns once the connection is to end.
async fn draining<W: World>(session: &Session<W>) {
    match session.world.drain() {
        Some(drain) => drain.begun().await,
        None => std::future::pending().await,
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
