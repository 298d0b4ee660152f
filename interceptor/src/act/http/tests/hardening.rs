//! Clauses of T-36 to T-38 that no other test has.

use std::pin::pin;

use tokio::io::duplex;

use super::*;
use crate::act::http::wire::{End, HEAD_DEADLINE};

/// T-37: what was sniffed belongs to the head: its time counts from the first byte, read here or
/// before.
#[tokio::test(start_paused = true)]
async fn t37_the_deadline_counts_from_the_first_byte_that_was_sniffed() {
    for before in [0, 4] {
        let began = Instant::now();
        tokio::time::advance(Duration::from_secs(before)).await;
        let (mut client, server) = duplex(64);
        client.write_all(b"GET / HTTP/1.1\r\n").await.expect("writes");
        let (mut wire, shared) = Wire::new(server, Reading { room: None, began: Some(began) });
        assert!(wire.read_u8().await.is_err());
        assert_eq!((began.elapsed().as_secs(), shared.end()), (10, Some(End::Deadline)));
    }
}

/// T-37: the time of the first head is not that of a later one.
#[tokio::test(start_paused = true)]
async fn t37_each_head_has_a_deadline_of_its_own() {
    let began = Instant::now();
    tokio::time::advance(Duration::from_secs(4)).await;
    let (mut client, server) = duplex(256);
    let first = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    client.write_all(&[&first[..], b"GET /2"].concat()).await.expect("writes");
    let (mut wire, _shared) = Wire::new(server, Reading { room: None, began: Some(began) });
    wire.read_exact(&mut [0; 27]).await.expect("the first head");
    let started = Instant::now();
    assert!(pin!(wire.read_u8()).await.is_err());
    assert_eq!(started.elapsed().as_secs(), HEAD_DEADLINE.as_secs());
}

/// T-38: a redirect is the client's to follow: nobody is dialled for it, and it allows nothing.
#[tokio::test]
async fn t38_a_redirect_is_passed_on_and_never_followed() {
    let elsewhere = Stub::saying("x").await;
    let answer = format!(
        "HTTP/1.1 302 Found\r\nLocation: http://{}/\r\nAlt-Svc: h2=\"b.com:443\"\r\n\
         Content-Length: 0\r\n\r\n",
        elsewhere.at
    );
    let stub = Stub::answering(answer, false).await;
    let mut client = Client::connect(&Names::default().allow("a.com", stub.at)).await;
    client.send("GET / HTTP/1.1\r\nHost: a.com\r\n\r\n").await;
    let response = client.response().await;
    assert!(response.starts_with("HTTP/1.1 302 Found\r\n"), "{response}");
    assert_eq!(header(&response, "location"), Some(format!("http://{}/", elsewhere.at).as_str()));
    client.send("GET / HTTP/1.1\r\nHost: b.com\r\n\r\n").await;
    assert!(client.response().await.starts_with("HTTP/1.1 502 "));
    assert_eq!((elsewhere.connections(), stub.seen().len()), (0, 1));
}
