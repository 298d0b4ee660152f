//! The record of one exchange: owned by whatever still has to happen, written when it did, or when
//! its owner is dropped because the client went away.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Instant;

use crate::account::{AccessLog, Flag, Record};

use super::wire::Exchange;

/// A record that will be written exactly once.
pub(super) struct Entry {
    log: AccessLog,
    record: Option<Record>,
    started: Instant,
    /// Body bytes from the client so far.
    pub(super) received: Arc<AtomicU64>,
    /// Body bytes to the client so far.
    pub(super) sent: Arc<AtomicU64>,
}

impl Entry {
    /// Starts the clock.
    pub(super) fn new(log: AccessLog, record: Record) -> Self {
        Self {
            log,
            record: Some(record),
            started: Instant::now(),
            received: Arc::default(),
            sent: Arc::default(),
        }
    }

    /// Changes the record.
    pub(super) fn edit(&mut self, change: impl FnOnce(&mut Record)) {
        if let Some(record) = &mut self.record {
            change(record);
        }
    }

    /// Writes the record: the exchange came to its own end.
    pub(super) fn finish(mut self) {
        self.write();
    }

    fn write(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.duration = self.started.elapsed();
            record.bytes_received = self.received.load(Ordering::Relaxed);
            record.bytes_sent = self.sent.load(Ordering::Relaxed);
            self.log.write(record);
        }
    }
}

impl Drop for Entry {
    /// Nobody finished it: the client has gone (LOG-53).
    fn drop(&mut self) {
        self.edit(|record| {
            record.flags = vec![Flag::DC];
            record.response_code_details = Some("downstream_remote_disconnect".into());
        });
        self.write();
    }
}

/// A request body on its way to the upstream, counted.
pub(super) struct Upload {
    body: Option<Incoming>,
    received: Arc<AtomicU64>,
}

impl Upload {
    /// `body`, or none where it is known to be empty.
    pub(super) fn new(body: Option<Incoming>, entry: &Entry) -> Self {
        Self { body, received: Arc::clone(&entry.received) }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.received.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// What an answer consists of.
pub(super) enum Content {
    /// Our own text.
    Local(Full<Bytes>),
    /// The upstream's body, passed through.
    Upstream(Incoming),
    /// Nothing, and the record is somebody else's (101).
    Nothing,
}

/// An answer's body on its way to the client: counts, and writes the record at the last byte.
pub(super) struct Answer {
    content: Content,
    entry: Option<Entry>,
    /// The connection is busy as long as this is held.
    _exchange: Exchange,
}

impl Answer {
    pub(super) fn new(content: Content, entry: Option<Entry>, exchange: Exchange) -> Self {
        Self { content, entry, _exchange: exchange }
    }

    fn finish(&mut self) {
        if let Some(entry) = self.entry.take() {
            entry.finish();
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = match &mut self.content {
            Content::Nothing => None,
            Content::Local(text) => ready!(Pin::new(text).poll_frame(cx))
                .map(|frame| frame.map_err(|never| match never {})),
            Content::Upstream(body) => ready!(Pin::new(body).poll_frame(cx)),
        };
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(data), Some(entry)) = (frame.data_ref(), &self.entry) {
                    entry.sent.fetch_add(data.len() as u64, Ordering::Relaxed);
                }
                // Nothing follows trailers, and the library does not ask.
                if frame.is_trailers() {
                    self.finish();
                }
            }
            Some(Err(error)) => {
                let (flag, why) = if error.is_parse() {
                    (Flag::UPE, "upstream_reset_after_response_started{protocol_error}")
                } else {
                    (Flag::UC, "upstream_reset_after_response_started{connection_termination}")
                };
                if let Some(entry) = &mut self.entry {
                    entry.edit(|record| {
                        record.flags = vec![flag];
                        record.response_code_details = Some(why.into());
                    });
                }
                self.finish();
            }
            None => self.finish(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Nothing => true,
            Content::Local(text) => text.is_end_stream(),
            Content::Upstream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Nothing => SizeHint::with_exact(0),
            Content::Local(text) => text.size_hint(),
            Content::Upstream(body) => body.size_hint(),
        }
    }
}

impl Drop for Answer {
    /// The library does not ask for an end that it knows of: a body without bytes, or all of an
    /// announced length. Anything else was given up.
    fn drop(&mut self) {
        if self.is_end_stream() {
            self.finish();
        }
    }
}
