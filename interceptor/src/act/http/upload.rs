//! A request's body on its way upstream: counted, and kept while it is small, so that an attempt can
//! be repeated (VS-44) or copied (VS-28).

use std::error::Error;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::canon;
use super::pool::lock;

/// What a body may fail with.
pub(super) type BoxError = Box<dyn Error + Send + Sync>;

/// Bodies up to this size can be sent again.
const KEPT_MAX: usize = 64 * 1024;

/// Where a body comes from, and what of it has come.
pub(super) struct Source {
    state: Mutex<State>,
    ended: Notify,
    received: Arc<AtomicU64>,
    /// When the last of it had come.
    complete: Arc<OnceLock<Instant>>,
}

struct State {
    rest: Option<Incoming>,
    /// Everything so far; `None`: not kept, or too large to be.
    kept: Option<Vec<Piece>>,
    size: usize,
    complete: bool,
    /// The body of which attempt may go on reading.
    attempt: u32,
}

#[derive(Clone)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

/// The previous attempt's body: its attempt is over.
#[derive(Debug, thiserror::Error)]
#[error("the request is sent anew")]
struct Superseded;

impl Source {
    /// `body`, or none where it is known to be empty. `keep`: it may be needed again. Counts in
    /// `received`, and says in `complete` when the last of it came.
    pub(super) fn new(
        body: Option<Incoming>,
        keep: bool,
        received: Arc<AtomicU64>,
        complete: Arc<OnceLock<Instant>>,
    ) -> Arc<Self> {
        let whole = body.is_none();
        let too_large =
            body.as_ref().is_some_and(|body| body.size_hint().lower() > KEPT_MAX as u64);
        let kept = (whole || (keep && !too_large)).then(Vec::new);
        let state = State { rest: body, kept, size: 0, complete: whole, attempt: 0 };
        Arc::new(Self { state: Mutex::new(state), ended: Notify::new(), received, complete })
    }

    /// The body for the next attempt, from its start; earlier ones end. `None`: it cannot be had
    /// again. The first attempt always has one.
    pub(super) fn again(self: &Arc<Self>) -> Option<Upload> {
        let mut state = lock(&self.state);
        if state.attempt > 0 && state.kept.is_none() {
            return None;
        }
        state.attempt += 1;
        Some(Upload { source: Arc::clone(self), attempt: state.attempt, at: 0 })
    }

    /// Whether [`Self::again`] will give one.
    pub(super) fn can_repeat(&self) -> bool {
        lock(&self.state).kept.is_some()
    }

    /// Whether all of the body has come.
    pub(super) fn is_complete(&self) -> bool {
        lock(&self.state).complete
    }

    /// Returns when all of the body has come.
    pub(super) async fn ended(&self) {
        loop {
            let ended = self.ended.notified();
            if lock(&self.state).complete {
                return;
            }
            ended.await;
        }
    }

    /// A copy of a body that has come in whole; `None` where it was not kept.
    pub(super) fn copy(&self) -> Option<Arc<Self>> {
        let state = lock(&self.state);
        if !state.complete {
            return None;
        }
        let kept = Some(state.kept.clone()?);
        let state = State { rest: None, kept, size: state.size, complete: true, attempt: 0 };
        let (received, complete) = Default::default();
        Some(Arc::new(Self { state: Mutex::new(state), ended: Notify::new(), received, complete }))
    }
}

impl State {
    fn keep(&mut self, frame: &Frame<Bytes>) {
        let size = frame.data_ref().map_or(0, Bytes::len);
        self.size = self.size.saturating_add(size);
        if self.size > KEPT_MAX {
            self.kept = None;
        }
        let Some(kept) = &mut self.kept else { return };
        if let Some(data) = frame.data_ref() {
            kept.push(Piece::Data(data.clone()));
        } else if let Some(trailers) = frame.trailers_ref() {
            kept.push(Piece::Trailers(trailers.clone()));
        }
    }
}

/// The body of one attempt.
pub(super) struct Upload {
    source: Arc<Source>,
    attempt: u32,
    at: usize,
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let state = &mut *lock(&this.source.state);
        if state.attempt != this.attempt {
            return Poll::Ready(Some(Err(Superseded.into())));
        }
        if let Some(piece) = state.kept.as_ref().and_then(|kept| kept.get(this.at)) {
            this.at += 1;
            return Poll::Ready(Some(Ok(match piece.clone() {
                Piece::Data(data) => Frame::data(data),
                Piece::Trailers(trailers) => Frame::trailers(trailers),
            })));
        }
        let Some(rest) = state.rest.as_mut().filter(|_| !state.complete) else {
            return Poll::Ready(None);
        };
        let frame =
            ready!(Pin::new(&mut *rest).poll_frame(cx)).map(|frame| frame.map(canon::frame));
        // The library does not ask for an end that it knows of.
        state.complete = frame.is_none() || (matches!(frame, Some(Ok(_))) && rest.is_end_stream());
        if let Some(Ok(frame)) = &frame {
            if let Some(data) = frame.data_ref() {
                this.source.received.fetch_add(data.len() as u64, Ordering::Relaxed);
            }
            state.keep(frame);
            this.at += 1;
        }
        if state.complete {
            if matches!(frame, None | Some(Ok(_))) {
                // Of several attempts the first one's end is the request's.
                let _ = this.source.complete.set(Instant::now());
            }
            this.source.ended.notify_waiters();
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        let state = lock(&self.source.state);
        let all_sent = state.kept.as_ref().is_none_or(|kept| self.at >= kept.len());
        all_sent && (state.complete || state.rest.as_ref().is_none_or(Body::is_end_stream))
    }

    fn size_hint(&self) -> SizeHint {
        let state = lock(&self.source.state);
        let kept: usize = state.kept.iter().flatten().skip(self.at).map(Piece::size).sum();
        let rest = match &state.rest {
            Some(rest) if !state.complete => rest.size_hint(),
            _ => SizeHint::with_exact(0),
        };
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(kept as u64));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(kept as u64));
        }
        hint
    }
}

impl Piece {
    fn size(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Trailers(_) => 0,
        }
    }
}
