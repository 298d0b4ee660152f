//! What is idle for a while costs little, and goes on as if nothing had been.

use tokio::sync::oneshot;
use tokio::time::sleep;

use super::*;

const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
const ASK: &str = "GET / HTTP/1.1\r\nHost: a.com\r\n\r\n";

/// Longer than it takes to come to rest. The clock of these tests jumps.
const LONG: Duration = Duration::from_secs(60);

/// Both connections, the client's and the upstream's, are the same ones after a rest.
#[tokio::test(start_paused = true)]
async fn both_connections_go_on_after_a_rest() {
    let stub = Stub::answering(ANSWER, false).await;
    let mut client = Client::connect(&Names::default().allow("a.com", stub.at)).await;
    for turn in 1..=3 {
        client.send(ASK).await;
        assert_eq!(client.response().await, ANSWER);
        assert_eq!((stub.seen().len(), stub.connections()), (turn, 1));
        sleep(LONG).await;
    }
    assert_eq!(client.records().await.len(), 3);
}

/// An upstream that ends meanwhile is let go of at once, and the next request goes to a new one.
#[tokio::test(start_paused = true)]
async fn an_upstream_that_ends_meanwhile_is_let_go() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let at = listener.local_addr().expect("an address");
    let (end, ended) = oneshot::channel::<()>();
    let (gone, is_gone) = oneshot::channel();
    tokio::spawn(async move {
        let (mut first, _) = listener.accept().await.expect("accepts");
        read_head(&mut first).await.expect("a head");
        first.write_all(ANSWER.as_bytes()).await.expect("writes");
        ended.await.expect("is told");
        first.shutdown().await.expect("shuts down");
        let _ = gone.send(first.read(&mut [0; 16]).await.expect("reads"));
        let (mut second, _) = listener.accept().await.expect("accepts");
        read_head(&mut second).await.expect("a head");
        second.write_all(ANSWER.as_bytes()).await.expect("writes");
    });
    let mut client = Client::connect(&Names::default().allow("a.com", at)).await;
    client.send(ASK).await;
    assert_eq!(client.response().await, ANSWER);
    sleep(LONG).await;
    end.send(()).expect("listens");
    assert_eq!(timeout(PATIENCE, is_gone).await.expect("in time").expect("tells"), 0);
    client.send(ASK).await;
    assert_eq!(client.response().await, ANSWER);
    let records = client.records().await;
    assert_eq!(records.iter().map(|record| record.response_code).collect::<Vec<_>>(), [200, 200]);
}

/// T-46: an upstream that says something unasked meanwhile serves nobody any more.
#[tokio::test(start_paused = true)]
async fn an_upstream_that_speaks_unasked_meanwhile_is_let_go() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let at = listener.local_addr().expect("an address");
    let (speak, spoken) = oneshot::channel::<()>();
    tokio::spawn(async move {
        let (mut first, _) = listener.accept().await.expect("accepts");
        read_head(&mut first).await.expect("a head");
        first.write_all(ANSWER.as_bytes()).await.expect("writes");
        spoken.await.expect("is told");
        first
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nforge")
            .await
            .expect("writes");
        let (mut second, _) = listener.accept().await.expect("accepts");
        read_head(&mut second).await.expect("a head");
        second.write_all(ANSWER.as_bytes()).await.expect("writes");
    });
    let mut client = Client::connect(&Names::default().allow("a.com", at)).await;
    client.send(ASK).await;
    assert_eq!(client.response().await, ANSWER);
    sleep(LONG).await;
    speak.send(()).expect("listens");
    sleep(LONG).await;
    client.send(ASK).await;
    assert_eq!(client.response().await, ANSWER);
}

/// The idle limit counts from the last request, rest or not.
#[tokio::test(start_paused = true)]
async fn a_connection_at_rest_ends_at_the_idle_limit() {
    let stub = Stub::answering(ANSWER, false).await;
    let mut client = Client::connect(&Names::default().allow("a.com", stub.at)).await;
    client.send(ASK).await;
    assert_eq!(client.response().await, ANSWER);
    let start = Instant::now();
    let ended = client.stream.read(&mut [0; 16]).await.expect("a FIN");
    assert_eq!(ended, 0);
    let took = start.elapsed();
    let limit = super::wire::IDLE_LIMIT;
    assert!(took <= limit + LONG && took + LONG >= limit, "{took:?}");
}
