use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::tls::sample::{Sample, rustls};
use super::*;
use crate::decide::host::HostName;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn named(name: &str) -> Hello {
    Hello::Tls(ClientHello { sni: Some(HostName::parse(name).unwrap()), ..ClientHello::default() })
}

fn first_bytes() -> Vec<(Vec<u8>, Hello)> {
    vec![
        (Sample::named("a.test").bytes(), named("a.test")),
        (rustls("a.test", &[], false), named("a.test")),
        (b"GET /".to_vec(), Hello::Http1),
        (PREFACE.to_vec(), Hello::Http2),
        (b"SS".to_vec(), Hello::Opaque),
        (b"GETX".to_vec(), Hello::Opaque),
        (b"PRI * HTTP/1".to_vec(), Hello::Opaque),
        (vec![22, 2], Hello::Opaque),
        (vec![0x80], Hello::Opaque),
        (b"GET  ".to_vec(), Hello::Malformed(Malformed("no request target after the HTTP method"))),
        (vec![22, 3, 1, 0, 0], Hello::Malformed(Malformed("empty handshake record"))),
    ]
}

#[test]
fn the_last_byte_makes_it_certain_whatever_the_pieces() {
    for (bytes, want) in first_bytes() {
        for piece in [1, 2, 3, 7, 1000] {
            let mut sniffer = Sniffer::default();
            assert!(sniffer.is_empty());
            let mut taken = 0;
            for piece in bytes.chunks(piece) {
                taken += piece.len();
                let answer = sniffer.push(piece);
                assert_eq!(answer.is_some(), taken == bytes.len(), "{want:?} after {taken}");
                assert_eq!(sniffer.bytes_len(), taken);
                assert!(!sniffer.is_empty());
            }
            assert_eq!(sniffer.push(b""), Some(want.clone()));
            assert_eq!(sniffer.into_bytes(), bytes);
        }
    }
}

#[test]
fn what_follows_changes_nothing_and_is_kept() {
    for (bytes, want) in first_bytes() {
        let mut sniffer = Sniffer::default();
        sniffer.push(&bytes);
        assert_eq!(sniffer.push(b"GET / HTTP/1.1\r\n"), Some(want));
        assert_eq!(sniffer.into_bytes(), [&bytes[..], b"GET / HTTP/1.1\r\n"].concat());
    }
    assert_eq!(Sniffer::default().push(b""), None);
}

#[test]
fn t18_it_never_stays_undecided_above_the_bound() {
    let hello = Sample::named("a.test").ext(0x1234, [0; 8000]).padded_to(tls::MAX_BYTES).bytes();
    let mut sniffer = Sniffer::default();
    let answer = hello.chunks(1000).find_map(|piece| sniffer.push(piece));
    assert_eq!(answer, Some(Hello::Malformed(Malformed("ClientHello is longer than 64 KiB"))));
}

/// Two ends of a connection, without Nagle so that each write is a segment.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    client.set_nodelay(true).unwrap();
    (client, listener.accept().await.unwrap().0)
}

#[tokio::test]
async fn t17_segments_of_one_byte_from_a_socket() {
    for (bytes, want) in first_bytes() {
        let (mut client, server) = pair().await;
        let mut sniffer = Sniffer::default();
        let send = async {
            for byte in &bytes {
                client.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        // Far off: only so that a reader that never decides fails instead of hanging.
        let deadline = Instant::now() + Duration::from_secs(60);
        let (got, ()) = tokio::join!(sniffer.read_from(&server, Some(deadline)), send);
        assert_eq!(got.unwrap(), want);
        assert_eq!(sniffer.into_bytes(), bytes);
    }
}

#[tokio::test]
async fn what_was_read_and_what_was_not_is_the_whole_stream() {
    let sent: Vec<u8> = b"GET /".iter().copied().chain((0..300_000u32).map(|i| i as u8)).collect();
    let (mut client, mut server) = pair().await;
    let write = async {
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
    };
    let read = async {
        let mut sniffer = Sniffer::default();
        assert_eq!(sniffer.read_from(&server, None).await.unwrap(), Hello::Http1);
        let again = sniffer.bytes_len();
        assert_eq!(sniffer.read_from(&server, None).await.unwrap(), Hello::Http1);
        assert_eq!(sniffer.bytes_len(), again, "nothing is read once the hello is certain");
        assert!(again <= tls::MAX_BYTES, "{again}");
        let mut all = sniffer.into_bytes().to_vec();
        server.read_to_end(&mut all).await.unwrap();
        all
    };
    let (all, ()) = tokio::join!(read, write);
    assert!(all == sent);
}

#[tokio::test]
async fn t18_reading_stops_at_the_bound() {
    // A hello in 1-byte records that would need 100 KiB.
    let message = Sample::named("a.test").ext(21, [0; 20_000]).message();
    let sent = tls::sample::records(&message, 1);
    let (mut client, server) = pair().await;
    let mut sniffer = Sniffer::default();
    let endless = async {
        client.write_all(&sent).await.unwrap();
        std::future::pending::<()>().await;
    };
    let got = tokio::select! {
        got = sniffer.read_from(&server, None) => got.unwrap(),
        () = endless => unreachable!(),
    };
    assert_eq!(got, Hello::Malformed(Malformed("ClientHello is longer than 64 KiB")));
    assert_eq!(sniffer.bytes_len(), tls::MAX_BYTES);
}

#[tokio::test]
async fn lis25_end_of_stream_before_the_hello_is_certain() {
    let hello = Sample::named("a.test").bytes();
    for sent in [&b""[..], b"GE", &PREFACE[..20], &hello[..hello.len() - 1]] {
        let (mut client, server) = pair().await;
        client.write_all(sent).await.unwrap();
        client.shutdown().await.unwrap();
        let mut sniffer = Sniffer::default();
        assert_eq!(sniffer.read_from(&server, None).await.unwrap(), Hello::Closed);
        assert_eq!(sniffer.into_bytes(), sent);
    }
}

#[tokio::test]
async fn end_of_stream_right_behind_the_hello_is_no_end() {
    for (bytes, want) in first_bytes() {
        let (mut client, server) = pair().await;
        client.write_all(&bytes).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(Sniffer::default().read_from(&server, None).await.unwrap(), want);
    }
}

#[tokio::test]
async fn a_reset_is_an_error() {
    let (client, server) = pair().await;
    socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    let error = Sniffer::default().read_from(&server, None).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test(start_paused = true)]
async fn t28_silence_ends_at_the_deadline_and_not_before() {
    let hello = Sample::named("a.test").bytes();
    for sent in [&b""[..], b"GE", &hello[..40]] {
        let (mut client, server) = pair().await;
        client.write_all(sent).await.unwrap();
        let begin = Instant::now();
        let mut sniffer = Sniffer::default();
        let deadline = begin + Duration::from_secs(5);
        assert_eq!(sniffer.read_from(&server, Some(deadline)).await.unwrap(), Hello::Silent);
        assert!((Duration::from_secs(5)..Duration::from_secs(6)).contains(&begin.elapsed()));
        assert_eq!(sniffer.into_bytes(), sent);
    }
}

#[tokio::test]
async fn the_hello_beats_a_deadline_to_come() {
    let (mut client, server) = pair().await;
    client.write_all(&Sample::named("a.test").bytes()).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    assert_eq!(
        Sniffer::default().read_from(&server, Some(deadline)).await.unwrap(),
        named("a.test")
    );
}

#[tokio::test]
async fn a_dropped_read_loses_nothing() {
    let hello = Sample::named("a.test").bytes();
    let (mut client, server) = pair().await;
    let mut sniffer = Sniffer::default();
    for byte in &hello[..hello.len() - 1] {
        client.write_all(&[*byte]).await.unwrap();
        // Dropped while it waits for more, whether or not it has read this byte yet.
        tokio::select! {
            got = sniffer.read_from(&server, None) => panic!("too early: {got:?}"),
            () = tokio::task::yield_now() => {}
        }
    }
    client.write_all(&hello[hello.len() - 1..]).await.unwrap();
    assert_eq!(sniffer.read_from(&server, None).await.unwrap(), named("a.test"));
    assert_eq!(sniffer.into_bytes(), hello);
}

/// T-29: a byte sent as urgent is not part of the stream: the hello is read, and passed on, as if it
/// were not there; and one that is missing keeps nobody waiting beyond the deadline.
#[tokio::test]
async fn t29_urgent_data_does_not_change_what_is_read() {
    use nix::sys::socket::{MsgFlags, send};
    use std::os::fd::AsRawFd;

    let hello = Sample::named("a.test").bytes();
    for urgent_at in [1, 50, hello.len() - 1] {
        let (mut client, server) = pair().await;
        client.write_all(&hello[..urgent_at]).await.unwrap();
        assert_eq!(send(client.as_raw_fd(), b"X", MsgFlags::MSG_OOB), Ok(1));
        let mut sniffer = Sniffer::default();
        let soon = Instant::now() + Duration::from_millis(50);
        assert_eq!(sniffer.read_from(&server, Some(soon)).await.unwrap(), Hello::Silent);
        client.write_all(&hello[urgent_at..]).await.unwrap();
        assert_eq!(sniffer.read_from(&server, None).await.unwrap(), named("a.test"));
        assert_eq!(sniffer.into_bytes(), hello);
    }
}
