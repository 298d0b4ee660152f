//! The record of one exchange: owned by whatever still has to happen, written when it did, or when
//! its owner is dropped because the client went away.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Instant;

use crate::account::wanted::Wanted;
use crate::account::{Flag, Folds, Pen, Record};
use crate::act::cluster::{Busy, Permit};

use super::canon;
use super::cut::{self, Removed, Withdrawal};
use super::pool::{Connection, Pool};
use super::upload::{BoxError, Source};
use super::wire::Exchange;

/// An answer did not end in the route's time.
#[derive(Debug, thiserror::Error)]
#[error("the answer took too long")]
struct Late;

/// A record that will be written exactly once.
pub(super) struct Entry {
    pen: Pen,
    /// Boxed, since the answer that it goes with is moved about.
    record: Option<Box<Record>>,
    /// Set where it may be one of many refusals.
    folds: Option<Arc<Folds>>,
    started: Instant,
    /// When the last of the request had come.
    pub(super) complete: Arc<OnceLock<Instant>>,
    /// Body bytes from the client so far.
    pub(super) received: Arc<AtomicU64>,
    /// Body bytes to the client so far.
    pub(super) sent: Arc<AtomicU64>,
}

impl Entry {
    /// Starts the clock. Written by the settings of `pen`.
    pub(super) fn new(pen: Pen, record: Record) -> Self {
        Self {
            pen,
            record: Some(Box::new(record)),
            folds: None,
            started: Instant::now(),
            complete: Arc::default(),
            received: Arc::default(),
            sent: Arc::default(),
        }
    }

    /// The record so far.
    pub(super) fn record(&self) -> &Record {
        self.record.as_deref().expect("it is taken out only when the entry ends")
    }

    /// Changes the record.
    pub(super) fn edit(&mut self, change: impl FnOnce(&mut Record)) {
        if let Some(record) = &mut self.record {
            change(record);
        }
    }

    /// The request is refused by policy: its record may be folded.
    pub(super) fn refused(&mut self, folds: Option<Arc<Folds>>) {
        self.folds = folds;
    }

    /// What the log wants to know.
    pub(super) fn wanted(&self) -> &Wanted {
        self.pen.wanted()
    }

    /// Since the clock was started.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The answer's head, as it goes to the client.
    pub(super) fn head(&mut self, headers: &HeaderMap) {
        let picked = self.wanted().response.pick(headers);
        self.edit(|record| record.more.response_headers = picked);
    }

    /// The answer's end, where it has something to say.
    fn trailers(&mut self, trailers: &HeaderMap) {
        let picked = self.wanted().trailers.pick(trailers);
        self.edit(|record| record.more.response_trailers = picked);
    }

    /// Writes the record: the exchange came to its own end.
    pub(super) fn finish(mut self) {
        self.write();
    }

    fn write(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.duration = self.started.elapsed();
            record.note_audited();
            record.more.request_duration =
                self.complete.get().map(|end| end.saturating_duration_since(self.started));
            record.bytes_received = self.received.load(Ordering::Relaxed);
            record.bytes_sent = self.sent.load(Ordering::Relaxed);
            match &self.folds {
                Some(folds) => folds.refused(*record),
                None => self.pen.write(*record),
            }
        }
    }
}

impl Drop for Entry {
    /// Nobody finished it: the client has gone (LOG-53).
    fn drop(&mut self) {
        self.edit(|record| {
            record.flags.push(Flag::DC);
            record.response_code_details = Some("downstream_remote_disconnect".into());
        });
        self.write();
    }
}

/// Whether the upstream reset the stream (HTTP/2). The library says so in words only.
pub(super) fn is_reset(error: &hyper::Error) -> bool {
    std::error::Error::source(error)
        .is_some_and(|source| source.to_string().starts_with("stream error received"))
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
    /// Runs out when the route's time is over (VS-30).
    deadline: Option<Deadline>,
    /// Counts as a request under way as long as this is held (DR-10).
    under_way: Option<UnderWay>,
    /// Resolves when policy no longer allows it (T-62).
    withdrawal: Option<Withdrawal>,
    /// The connection is busy as long as this is held.
    _exchange: Exchange,
}

/// A route's time-out.
pub(super) type Deadline = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a request counts for in its cluster, given back when dropped; and its connection.
pub(super) struct UnderWay {
    pub(super) _request: Permit,
    pub(super) _busy: Busy,
    pub(super) lent: Option<Lent>,
}

/// A connection that serves one request at a time. It returns to its pool when both the request and
/// its answer are over, so that no other request waits behind them (TLS-12).
pub(super) struct Lent {
    pub(super) pool: Arc<Pool>,
    pub(super) connection: Connection,
    pub(super) request: Arc<Source>,
}

impl UnderWay {
    /// The answer has come to its end.
    fn finish(self) {
        if let Some(Lent { pool, connection, request }) = self.lent
            && request.is_complete()
        {
            pool.put(connection);
        }
    }
}

impl Answer {
    pub(super) fn new(content: Content, entry: Option<Entry>, exchange: Exchange) -> Self {
        let (deadline, under_way, withdrawal) = (None, None, None);
        Self { content, entry, deadline, under_way, withdrawal, _exchange: exchange }
    }

    /// What it is bounded by, and what it counts for.
    pub(super) fn within(
        mut self,
        deadline: Option<Deadline>,
        under_way: UnderWay,
        withdrawal: Option<Withdrawal>,
    ) -> Self {
        self.deadline = deadline;
        self.withdrawal = withdrawal;
        self.under_way = Some(under_way);
        self
    }

    fn poll_late(&mut self, cx: &mut Context<'_>) -> bool {
        matches!(self.content, Content::Upstream(_))
            && self.deadline.as_mut().is_some_and(|late| late.as_mut().poll(cx).is_ready())
    }

    fn poll_withdrawn(&mut self, cx: &mut Context<'_>) -> Poll<&'static str> {
        match &mut self.withdrawal {
            Some(withdrawal) => {
                let why = ready!(withdrawal.as_mut().poll(cx));
                self.withdrawal = None;
                Poll::Ready(why)
            }
            None => Poll::Pending,
        }
    }

    fn failed(&mut self, flag: Flag, why: impl Into<Cow<'static, str>>) {
        if let Some(entry) = &mut self.entry {
            entry.edit(|record| {
                record.flags.push(flag);
                record.response_code_details = Some(why.into());
            });
        }
        self.record();
    }

    /// The record is complete.
    fn record(&mut self) {
        if let Some(entry) = self.entry.take() {
            entry.finish();
        }
    }

    /// All of the answer has come.
    fn finish(&mut self) {
        self.record();
        if let Some(under_way) = self.under_way.take() {
            under_way.finish();
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.poll_late(cx) {
            self.failed(Flag::UT, "response_timeout");
            return Poll::Ready(Some(Err(Late.into())));
        }
        if let Poll::Ready(why) = self.poll_withdrawn(cx) {
            self.failed(Flag::UH, cut::details(why));
            return Poll::Ready(Some(Err(Removed.into())));
        }
        let frame = match &mut self.content {
            Content::Nothing => None,
            Content::Local(text) => ready!(Pin::new(text).poll_frame(cx))
                .map(|frame| frame.map_err(|never| match never {})),
            Content::Upstream(body) => {
                ready!(Pin::new(body).poll_frame(cx)).map(|frame| frame.map(canon::frame))
            }
        };
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(data), Some(entry)) = (frame.data_ref(), &self.entry) {
                    entry.sent.fetch_add(data.len() as u64, Ordering::Relaxed);
                }
                // Nothing follows trailers, and the library does not ask.
                if let Some(trailers) = frame.trailers_ref() {
                    if let Some(entry) = &mut self.entry {
                        entry.trailers(trailers);
                    }
                    self.finish();
                }
            }
            Some(Err(error)) => {
                let (flag, why) = if error.is_parse() {
                    (Flag::UPE, "upstream_reset_after_response_started{protocol_error}")
                } else if is_reset(error) {
                    (Flag::UR, "upstream_reset_after_response_started{remote_reset}")
                } else {
                    (Flag::UC, "upstream_reset_after_response_started{connection_termination}")
                };
                self.failed(flag, why);
            }
            None => self.finish(),
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
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
