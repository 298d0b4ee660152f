//! `interceptor metrics --listen`: the metrics of one interceptor over HTTP. A process of its own, which
//! asks over the control socket: what speaks to the network has no part in the daemon.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::{AdminError, StatusReport, metrics};

/// Connections at the same time; others wait in the listen queue.
const MAX_CLIENTS: usize = 8;

/// A connection's whole life: a scraper asks every few seconds, and may come again.
const LIFE: Duration = Duration::from_secs(30);

/// A request's head comes within this.
const HEAD: Duration = Duration::from_secs(5);

/// The largest head, in bytes.
const MAX_HEAD: usize = 8192;

/// How long to wait when accept fails (out of file descriptors).
const PAUSE: Duration = Duration::from_millis(100);

/// Asks the interceptor. Called on a thread that may block.
pub type Ask = dyn Fn() -> Result<StatusReport, AdminError> + Send + Sync;

/// Serves `/metrics`, and `/healthz`, which tells whether this answers, until it is dropped.
pub async fn serve(listener: TcpListener, ask: Arc<Ask>) {
    let slots = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                tracing::warn!(%error, "metrics: accept");
                sleep(PAUSE).await;
                continue;
            }
        };
        let ask = Arc::clone(&ask);
        tokio::spawn(async move {
            let _slot = slot;
            // Cut or ended, nobody else is concerned.
            let _ = timeout(LIFE, converse(client, ask)).await;
        });
    }
}

async fn converse(client: TcpStream, ask: Arc<Ask>) -> hyper::Result<()> {
    let service = service_fn(move |request: Request<Incoming>| {
        let ask = Arc::clone(&ask);
        async move {
            let path = request.uri().path().to_owned();
            let answer = match *request.method() {
                Method::GET | Method::HEAD => answer(&path, ask).await,
                _ => {
                    let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
                    answer.headers_mut().insert(ALLOW, http::HeaderValue::from_static("GET, HEAD"));
                    answer
                }
            };
            Ok::<_, Infallible>(answer)
        }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(client), service)
        .await
}

async fn answer(path: &str, ask: Arc<Ask>) -> Response<Full<Bytes>> {
    match path {
        "/healthz" => return plain(StatusCode::OK, "ok\n"),
        "/metrics" => {}
        _ => return plain(StatusCode::NOT_FOUND, "there are /metrics and /healthz\n"),
    }
    let report = match spawn_blocking(move || ask()).await {
        Ok(Ok(report)) => report,
        Ok(Err(error)) => {
            return plain(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n"));
        }
        Err(_) => return plain(StatusCode::INTERNAL_SERVER_ERROR, "internal error\n"),
    };
    match metrics::render(&report) {
        Ok(text) => plain(StatusCode::OK, text),
        Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "internal error\n"),
    }
}

fn plain(code: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = code;
    let kind = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// What comes back for these bytes, until the server closes.
    async fn ask(request: &str, report: Arc<Ask>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let serving = tokio::spawn(serve(listener, report));
        let mut client = TcpStream::connect(address).await.expect("connected");
        client.write_all(request.as_bytes()).await.expect("sent");
        let mut text = String::new();
        client.read_to_string(&mut text).await.expect("closed in order");
        serving.abort();
        text
    }

    fn get(path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    }

    fn running() -> Arc<Ask> {
        Arc::new(|| Ok(StatusReport { uptime_s: 7, ..StatusReport::default() }))
    }

    #[tokio::test]
    async fn metrics_as_a_scraper_gets_them() {
        let text = ask(&get("/metrics"), running()).await;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(text.contains("content-type: text/plain; version=0.0.4"), "{text}");
        assert!(text.contains("\ninterceptor_uptime_seconds 7\n"), "{text}");
    }

    #[tokio::test]
    async fn no_daemon_is_no_metrics_and_this_lives_all_the_same() {
        let gone: Arc<Ask> = Arc::new(|| Err(AdminError::NotRunning("agent".to_owned())));
        let text = ask(&get("/metrics"), Arc::clone(&gone)).await;
        assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
        assert!(text.contains("no interceptor named agent is running"), "{text}");
        let text = ask(&get("/healthz"), gone).await;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    }

    #[tokio::test]
    async fn nothing_else_is_served() {
        let text = ask(&get("/metrics/../etc/passwd"), running()).await;
        assert!(text.starts_with("HTTP/1.1 404 "), "{text}");
        let post = get("/metrics").replace("GET", "POST");
        let text = ask(&post, running()).await;
        assert!(text.starts_with("HTTP/1.1 405 "), "{text}");
        let long = get(&format!("/{}", "a".repeat(2 * MAX_HEAD)));
        let text = ask(&long, running()).await;
        assert!(text.starts_with("HTTP/1.1 4"), "{text}");
    }
}
