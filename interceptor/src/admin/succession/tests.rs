use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use tempfile::TempDir;
use tokio::task::{JoinHandle, spawn_blocking};

use super::*;
use crate::admin::client::request_in;
use crate::admin::{ExecInfo, StatusReport};
use crate::workloads::testing::kernel;

/// A daemon with one namespace, of two listeners.
struct Daemon {
    pid: u32,
    listeners: [TcpListener; 2],
    laid_down: AtomicUsize,
    fails: bool,
}

impl Daemon {
    fn new(pid: u32) -> Arc<Self> {
        let listener = || TcpListener::bind("127.0.0.1:0").expect("bound");
        let listeners = [listener(), listener()];
        Arc::new(Self { pid, listeners, laid_down: AtomicUsize::new(0), fails: false })
    }

    fn serve(self: &Arc<Self>, server: Server) -> JoinHandle<()> {
        tokio::spawn(server.serve(Arc::clone(self) as _))
    }
}

impl Handler for Daemon {
    fn status(&self) -> StatusReport {
        StatusReport { pid: self.pid, ..crate::admin::tests::sample() }
    }

    fn bypass_add(&self, _: ipnet::IpNet) -> Result<(), String> {
        Ok(())
    }

    fn bypass_del(&self, _: ipnet::IpNet) -> Result<(), String> {
        Ok(())
    }

    fn bypass_list(&self) -> Vec<ipnet::IpNet> {
        Vec::new()
    }

    fn exec_info(&self) -> Result<ExecInfo, String> {
        Err("no place for commands".into())
    }

    fn offer(&self) -> Result<(Offer, Vec<OwnedFd>), String> {
        assert!(!self.fails, "as it was told to");
        let netns = std::fs::File::open("/proc/self/ns/net").expect("a namespace");
        let listeners = self.listeners.iter().map(|one| one.try_clone().expect("cloned").into());
        let namespace =
            OfferedNamespace { label: "host".into(), path: "/proc/x".into(), v4: 1, v6: true };
        let offer = Offer {
            pid: self.pid,
            namespaces: vec![namespace],
            bypass: vec!["192.0.2.0/24".into()],
        };
        Ok((offer, std::iter::once(netns.into()).chain(listeners).collect()))
    }

    fn lay_down(&self) -> Result<(), String> {
        match self.laid_down.fetch_add(1, Ordering::Relaxed) {
            0 => Ok(()),
            _ => Err("another one has it".into()),
        }
    }
}

async fn pid(dir: &TempDir) -> Result<u32, AdminError> {
    let dir = dir.path().to_owned();
    match spawn_blocking(move || request_in(&dir, "t", &Request::Status {})).await.unwrap()? {
        Answer::Status(report) => Ok(report.pid),
        other => panic!("{other:?}"),
    }
}

async fn ask(dir: &TempDir) -> Result<Option<Predecessor>, AdminError> {
    ask_as(dir, VERSION).await
}

async fn ask_as(dir: &TempDir, contract: u32) -> Result<Option<Predecessor>, AdminError> {
    let dir = dir.path().to_owned();
    spawn_blocking(move || Predecessor::ask_as(&dir, "t", contract)).await.unwrap()
}

async fn go(predecessor: Predecessor) -> Result<Server, AdminError> {
    spawn_blocking(|| predecessor.go()).await.unwrap()
}

fn port(fd: OwnedFd) -> u16 {
    TcpListener::from(fd).local_addr().expect("an address").port()
}

#[tokio::test]
async fn t60_a_place_changes_hands_with_its_sockets() {
    if !kernel("t60_a_place_changes_hands_with_its_sockets") {
        return;
    }
    let dir = TempDir::new().unwrap();
    assert!(ask(&dir).await.unwrap().is_none(), "nobody's place");
    let (old, new) = (Daemon::new(1), Daemon::new(2));
    let serving = old.serve(Server::bind(dir.path(), "t").unwrap());
    let mut predecessor = ask(&dir).await.unwrap().expect("one runs");
    assert_eq!(predecessor.offer().bypass, ["192.0.2.0/24"]);
    let mut namespaces = predecessor.namespaces();
    assert!(predecessor.namespaces().is_empty());
    let HandedOver { label, v4, v6, .. } = namespaces.remove(0);
    let ports: Vec<u16> = v4.into_iter().chain(v6).map(port).collect();
    let offered = old.listeners.each_ref().map(|one| one.local_addr().unwrap().port());
    assert_eq!((label.as_str(), &ports[..]), ("host", &offered[..]));
    assert_eq!(pid(&dir).await.unwrap(), 1, "as if nothing had been");
    assert_eq!(old.laid_down.load(Ordering::Relaxed), 0);

    let server = go(predecessor).await.unwrap();
    assert_eq!(old.laid_down.load(Ordering::Relaxed), 1);
    serving.abort();
    let _ = serving.await;
    let serving = new.serve(server);
    assert_eq!(pid(&dir).await.unwrap(), 2, "by the same socket");
    serving.abort();
    let _ = serving.await;
    assert!(!socket_path(dir.path(), "t").exists(), "whose file goes with its last owner");
}

#[tokio::test]
async fn t60_whoever_goes_away_or_is_refused_changes_nothing() {
    if !kernel("t60_whoever_goes_away_or_is_refused_changes_nothing") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let old = Daemon::new(1);
    let _serving = old.serve(Server::bind(dir.path(), "t").unwrap());
    drop(ask(&dir).await.unwrap());
    // One that hangs up directly after its word.
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(&line(&Request::Go {}).unwrap()).unwrap();
    theirs.shutdown(std::net::Shutdown::Write).unwrap();
    let socket = old.listeners[0].try_clone().unwrap().into();
    let why = offer(&ours, VERSION, socket, &*old).unwrap_err();
    assert!(why.contains("went away"), "{why}");
    let why = ask_as(&dir, VERSION + 1).await.unwrap_err().to_string();
    assert!(why.contains("cannot be shared"), "{why}");
    let at = dir.path().to_owned();
    let alone = spawn_blocking(move || request_in(&at, "t", &Request::Go {})).await.unwrap();
    assert!(alone.unwrap_err().to_string().contains("not the time"));
    assert_eq!(pid(&dir).await.unwrap(), 1);
    assert_eq!(old.laid_down.load(Ordering::Relaxed), 0);

    // Of two that prepare, the first one has it.
    let [first, second] = [ask(&dir).await, ask(&dir).await].map(|one| one.unwrap().unwrap());
    go(first).await.unwrap();
    assert!(go(second).await.unwrap_err().to_string().contains("another one"));
}

/// It breaks off with a word: only a process that is gone is silent.
#[tokio::test]
async fn t60_a_daemon_that_fails_has_not_died() {
    if !kernel("t60_a_daemon_that_fails_has_not_died") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let mut failing = Daemon::new(1);
    Arc::get_mut(&mut failing).expect("nobody else's").fails = true;
    let _serving = failing.serve(Server::bind(dir.path(), "t").unwrap());
    assert!(ask(&dir).await.unwrap_err().to_string().contains("internal error"));
    assert_eq!(pid(&dir).await.unwrap(), 1);
}

/// What it was about to hand over is in the new one's hands already.
#[tokio::test]
async fn t60_the_place_of_one_that_dies_meanwhile_is_taken() {
    if !kernel("t60_the_place_of_one_that_dies_meanwhile_is_taken") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let path = socket_path(dir.path(), "t");
    let dying = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let asking = tokio::spawn({
        let dir = dir.path().to_owned();
        async move { spawn_blocking(move || Predecessor::ask(&dir, "t")).await.unwrap() }
    });
    let (mut client, _) = spawn_blocking({
        let dying = dying.try_clone().unwrap();
        move || dying.accept().unwrap()
    })
    .await
    .unwrap();
    let offer = Offer { pid: 1, namespaces: Vec::new(), bypass: Vec::new() };
    send(&client, &line(&Answer::Offer(offer)).unwrap(), &[dying.into()]).unwrap();
    let predecessor = asking.await.unwrap().unwrap().expect("one runs");
    client.read_exact(&mut [0; 10]).unwrap();
    drop(client);
    let new = Daemon::new(2);
    let _serving = new.serve(go(predecessor).await.unwrap());
    assert_eq!(pid(&dir).await.unwrap(), 2);
}
