//! Relays between real sockets on loopback.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::pin::pin;

use bytes::Bytes;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::*;

/// A relay with the workload's end of the one connection and the server's end of the other.
struct Bench {
    client: TcpStream,
    server: TcpStream,
    relay: JoinHandle<Relayed>,
}

impl Bench {
    async fn start(prefix: &'static [u8], idle: Option<Duration>) -> Self {
        let (client, ours) = pair().await;
        let (upstream, server) = pair().await;
        let prefixed = Prefixed::new(Bytes::from_static(prefix), ours);
        Self {
            client,
            server,
            relay: tokio::spawn(async move {
                plain(
                    prefixed,
                    upstream,
                    RelayLimits { idle, duration: None },
                    pin!(std::future::pending()),
                )
                .await
            }),
        }
    }
}

/// Two ends of one connection.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(5), future).await.expect("must not take that long")
}

async fn expect(stream: &mut TcpStream, bytes: &[u8]) {
    let mut got = vec![0; bytes.len()];
    soon(stream.read_exact(&mut got)).await.unwrap();
    assert_eq!(got, bytes);
}

async fn expect_end(stream: &mut TcpStream) {
    assert_eq!(soon(stream.read(&mut [0; 16])).await.unwrap(), 0);
}

async fn expect_reset(stream: &mut TcpStream) {
    let error = soon(stream.read(&mut [0; 16])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// A reset that comes after the FIN: reading gives the end, again, but writing is over.
async fn expect_reset_after_end(stream: &mut TcpStream) {
    soon(stream.ready(Interest::ERROR)).await.unwrap();
    stream.write_all(b"x").await.unwrap_err();
}

fn ended(bytes_received: u64, bytes_sent: u64, end: RelayEnd) -> Relayed {
    Relayed { bytes_received, bytes_sent, end }
}

#[tokio::test]
async fn t54_half_close_of_the_client_leaves_the_answer_flowing() {
    let Bench { mut client, mut server, relay } = Bench::start(b"hello ", None).await;
    client.write_all(b"there").await.unwrap();
    client.shutdown().await.unwrap();
    expect(&mut server, b"hello there").await;
    expect_end(&mut server).await;
    sleep(Duration::from_millis(50)).await;
    server.write_all(b"late answer").await.unwrap();
    expect(&mut client, b"late answer").await;
    server.shutdown().await.unwrap();
    expect_end(&mut client).await;
    assert_eq!(soon(relay).await.unwrap(), ended(11, 11, RelayEnd::Closed));
}

#[tokio::test]
async fn t54_half_close_of_the_upstream_leaves_the_request_flowing() {
    let Bench { mut client, mut server, relay } = Bench::start(b"", None).await;
    server.write_all(b"220 ready").await.unwrap();
    server.shutdown().await.unwrap();
    expect(&mut client, b"220 ready").await;
    expect_end(&mut client).await;
    client.write_all(b"still talking").await.unwrap();
    expect(&mut server, b"still talking").await;
    drop(client);
    expect_end(&mut server).await;
    assert_eq!(soon(relay).await.unwrap(), ended(13, 9, RelayEnd::Closed));
}

#[tokio::test]
async fn t54_a_reset_of_either_side_is_a_reset_of_the_other() {
    for half_closed in [false, true] {
        let Bench { mut client, mut server, relay } = Bench::start(b"x", None).await;
        expect(&mut server, b"x").await;
        if half_closed {
            client.shutdown().await.unwrap();
            expect_end(&mut server).await;
        }
        block::reset(client);
        match half_closed {
            false => expect_reset(&mut server).await,
            true => expect_reset_after_end(&mut server).await,
        }
        assert_eq!(soon(relay).await.unwrap(), ended(1, 0, RelayEnd::ClientReset));

        let Bench { mut client, mut server, relay } = Bench::start(b"x", None).await;
        expect(&mut server, b"x").await;
        if half_closed {
            server.shutdown().await.unwrap();
            expect_end(&mut client).await;
        }
        block::reset(server);
        match half_closed {
            false => expect_reset(&mut client).await,
            true => expect_reset_after_end(&mut client).await,
        }
        assert_eq!(soon(relay).await.unwrap(), ended(1, 0, RelayEnd::UpstreamReset));
    }
}

#[tokio::test]
async fn what_a_side_said_before_it_reset_is_delivered_first() {
    let Bench { client, mut server, relay } = Bench::start(b"", None).await;
    assert_eq!(client.try_write(b"last words").unwrap(), 10);
    // Both lie in the relay's socket before it runs.
    block::reset(client);
    expect(&mut server, b"last words").await;
    expect_reset(&mut server).await;
    assert_eq!(soon(relay).await.unwrap(), ended(10, 0, RelayEnd::ClientReset));
}

#[tokio::test]
async fn a_client_that_closes_while_the_upstream_sends_resets_the_upstream() {
    let Bench { client, mut server, relay } = Bench::start(b"", None).await;
    drop(client);
    expect_end(&mut server).await;
    let flood = async { while server.write_all(&[1; 4096]).await.is_ok() {} };
    soon(flood).await;
    assert_eq!(soon(relay).await.unwrap().end, RelayEnd::ClientReset);
}

#[tokio::test]
async fn a_reset_is_noticed_while_the_other_side_does_not_read() {
    let Bench { client, mut server, relay } = Bench::start(b"", None).await;
    // Fill everything between the client and a server that reads nothing.
    while timeout(Duration::from_millis(300), client.writable()).await.is_ok() {
        let _ = client.try_write(&[1; 64 * 1024]);
    }
    block::reset(client);
    let relayed = soon(relay).await.unwrap();
    assert_eq!(relayed.end, RelayEnd::ClientReset);
    let error = soon(async {
        loop {
            if let Err(error) = server.read(&mut [0; 64 * 1024]).await {
                return error;
            }
        }
    });
    assert_eq!(error.await.kind(), ErrorKind::ConnectionReset);
}

/// A byte stream that does not repeat and costs nothing to keep.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            // xorshift64
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
    }
}

const BLOCK: usize = 64 * 1024;
const BLOCKS: usize = 1600;
const TOTAL: u64 = (BLOCK * BLOCKS) as u64;

async fn send_noise(mut to: tokio::net::tcp::OwnedWriteHalf, seed: u64) {
    let (mut noise, mut buf) = (Noise(seed), vec![0; BLOCK]);
    for _ in 0..BLOCKS {
        noise.fill(&mut buf);
        to.write_all(&buf).await.unwrap();
    }
}

async fn check_noise(mut from: tokio::net::tcp::OwnedReadHalf, seed: u64) {
    let (mut noise, mut expected, mut got) = (Noise(seed), vec![0; BLOCK], vec![0; BLOCK]);
    for n in 0..BLOCKS {
        noise.fill(&mut expected);
        from.read_exact(&mut got).await.unwrap();
        assert!(got == expected, "block {n} differs");
    }
    assert_eq!(from.read(&mut got).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_megabytes_each_way_at_once_arrive_whole_through_splice() {
    let Bench { client, server, relay } = Bench::start(b"", None).await;
    let ((client_read, client_write), (server_read, server_write)) =
        (client.into_split(), server.into_split());
    let tasks = [
        tokio::spawn(send_noise(client_write, 1)),
        tokio::spawn(check_noise(server_read, 1)),
        tokio::spawn(send_noise(server_write, 2)),
        tokio::spawn(check_noise(client_read, 2)),
    ];
    for task in tasks {
        timeout(Duration::from_secs(60), task).await.unwrap().unwrap();
    }
    assert_eq!(soon(relay).await.unwrap(), ended(TOTAL, TOTAL, RelayEnd::Closed));
}

#[tokio::test]
async fn t54_a_reset_in_the_middle_of_spliced_bulk_is_a_reset_of_the_other_side() {
    for client_resets in [true, false] {
        let Bench { client, server, relay } = Bench::start(b"", None).await;
        let (mut sender, mut receiver, end) = match client_resets {
            true => (client, server, RelayEnd::ClientReset),
            false => (server, client, RelayEnd::UpstreamReset),
        };
        let bulk = vec![5; 4 << 20];
        let mut got = vec![0; bulk.len()];
        let (sent, read) =
            soon(async { tokio::join!(sender.write_all(&bulk), receiver.read_exact(&mut got)) })
                .await;
        sent.unwrap();
        read.unwrap();
        block::reset(sender);
        expect_reset(&mut receiver).await;
        assert_eq!(soon(relay).await.unwrap().end, end);
    }
}

#[tokio::test]
async fn a_pipe_moves_bytes_until_the_end_and_says_when_they_pause() {
    let ((mut client, source), (sink, mut server)) = (pair().await, pair().await);
    let progress = Progress::new(Instant::now());
    let pipe = splice::Pipe::new().unwrap();
    client.write_all(b"through the kernel").await.unwrap();
    let paused = soon(pipe.move_all(&source, &sink, &progress)).await.unwrap();
    assert_eq!(paused, splice::Spliced::Paused);
    expect(&mut server, b"through the kernel").await;
    drop(client);
    let end = soon(pipe.move_all(&source, &sink, &progress)).await.unwrap();
    assert_eq!(end, splice::Spliced::End);
    assert_eq!(progress.read.into_inner(), 18);
    assert_eq!(progress.written.into_inner(), 18);
}

#[tokio::test]
async fn t49_an_idle_relay_costs_less_than_2_5_kib() {
    let ((_client, ours), (upstream, _server)) = (pair().await, pair().await);
    let limits = RelayLimits { idle: None, duration: None };
    let cut = pin!(std::future::pending());
    let relay = plain(Prefixed::new(Bytes::new(), ours), upstream, limits, cut);
    assert!(size_of_val(&relay) < 2560, "{}", size_of_val(&relay));
}

#[tokio::test]
async fn bulk_is_spliced_and_small_talk_is_not() {
    for (bytes, spliced) in [(100 << 10, false), (4 << 20, true)] {
        let ((mut client, ours), (upstream, mut server)) = (pair().await, pair().await);
        let (up, down) = (Progress::new(Instant::now()), Progress::new(Instant::now()));
        let bulk = vec![5; bytes];
        let mut got = vec![0; bytes];
        let talk = async {
            let (sent, read) = tokio::join!(client.write_all(&bulk), server.read_exact(&mut got));
            sent.unwrap();
            read.unwrap();
            drop((client, server));
        };
        let (end, ()) = soon(async {
            tokio::join!(run(Bytes::new(), &ours, &upstream, None, &up, &down), talk)
        })
        .await;
        assert_eq!(end, RelayEnd::Closed);
        assert_eq!(up.spliced.load(Ordering::Relaxed) > 0, spliced, "{up:?}");
        assert_eq!(up.written.load(Ordering::Relaxed), bytes as u64);
        assert_eq!(down.spliced.load(Ordering::Relaxed), 0);
    }
}

#[tokio::test]
async fn what_waits_behind_a_slow_side_when_the_other_resets_is_delivered_before_the_reset() {
    for server_speaks in [false, true] {
        let ((client, ours), (upstream, mut server)) = (pair().await, pair().await);
        SockRef::from(&upstream).set_send_buffer_size(16 * 1024).unwrap();
        SockRef::from(&server).set_recv_buffer_size(16 * 1024).unwrap();
        let (up, down) = (Progress::new(Instant::now()), Progress::new(Instant::now()));
        let script = async {
            // Fill everything up to the server, which does not read yet, then a bit more.
            let (mut sent, mut read) = (0, u64::MAX);
            while up.read.load(Ordering::Relaxed) != read {
                read = up.read.load(Ordering::Relaxed);
                sent += client.try_write(&[1; 4096]).unwrap();
                sleep(Duration::from_millis(20)).await;
            }
            assert!(sent as u64 > read);
            block::reset(client);
            if server_speaks {
                // The write to the dead client takes its error away: reading it gives an end.
                server.try_write(b"hello?").unwrap();
            }
            let (mut buf, mut got) = (vec![0; 64 * 1024], 0);
            loop {
                match soon(server.read(&mut buf)).await {
                    Ok(0) => panic!("a reset must not become a FIN"),
                    Ok(n) => got += n,
                    Err(error) => break assert_eq!(error.kind(), ErrorKind::ConnectionReset),
                }
            }
            assert_eq!(got, sent);
        };
        let relay = async {
            let end = run(Bytes::new(), &ours, &upstream, None, &up, &down).await;
            // Let the server take what the kernel still holds for it.
            sleep(Duration::from_millis(100)).await;
            block::reset(upstream);
            end
        };
        let (end, ()) = tokio::join!(relay, script);
        assert_eq!(end, RelayEnd::ClientReset);
    }
}

#[tokio::test]
async fn t51_a_slow_reader_stalls_the_writer() {
    let Bench { client, mut server, relay } = Bench::start(b"", None).await;
    // Fixed socket buffers: else the kernel grows them up to tcp_rmem and tcp_wmem.
    SockRef::from(&client).set_send_buffer_size(64 * 1024).unwrap();
    SockRef::from(&server).set_recv_buffer_size(64 * 1024).unwrap();
    let mut sent = 0;
    while timeout(Duration::from_millis(500), client.writable()).await.is_ok() {
        sent += client.try_write(&[1; 64 * 1024]).unwrap_or(0);
        assert!(sent < 64 << 20, "the writer must stall");
    }
    // Read on: everything that was taken arrives, and the writer goes on.
    let mut got = vec![0; sent];
    soon(server.read_exact(&mut got)).await.unwrap();
    soon(client.writable()).await.unwrap();
    drop(client);
    expect_end(&mut server).await;
    drop(server);
    assert_eq!(soon(relay).await.unwrap(), ended(sent as u64, 0, RelayEnd::Closed));
}

#[tokio::test]
async fn t54_the_idle_limit_ends_a_silent_relay_and_only_a_silent_one() {
    let start = Instant::now();
    let idle = Duration::from_millis(400);
    let Bench { mut client, mut server, relay } = Bench::start(b"", Some(idle)).await;
    for _ in 0..8 {
        sleep(idle / 4).await;
        server.write_all(b".").await.unwrap();
        expect(&mut client, b".").await;
    }
    assert_eq!(soon(relay).await.unwrap(), ended(0, 8, RelayEnd::Idle));
    assert!(start.elapsed() >= 3 * idle, "{:?}", start.elapsed());
    expect_end(&mut client).await;
    expect_end(&mut server).await;
}

#[tokio::test]
async fn a_direction_goes_on_after_its_pipe_was_given_back_and_past_urgent_data() {
    let Bench { mut client, mut server, relay } = Bench::start(b"", None).await;
    let bulk = vec![5; 2 << 20];
    let mut got = vec![0; bulk.len()];
    let (sent, read) =
        soon(async { tokio::join!(client.write_all(&bulk), server.read_exact(&mut got)) }).await;
    sent.unwrap();
    read.unwrap();
    assert_eq!(got, bulk);
    // An urgent byte while the direction is spliced: it is dropped, what follows is not.
    SockRef::from(&client).send_out_of_band(b"!").unwrap();
    client.write_all(b"after the urgent byte").await.unwrap();
    expect(&mut server, b"after the urgent byte").await;
    sleep(Duration::from_millis(1200)).await;
    client.write_all(b"after the pause").await.unwrap();
    expect(&mut server, b"after the pause").await;
    drop(client);
    expect_end(&mut server).await;
    drop(server);
    assert_eq!(soon(relay).await.unwrap().end, RelayEnd::Closed);
}
