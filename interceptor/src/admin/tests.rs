use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use tokio::task::spawn_blocking;

use super::client::{request_in, request_within};
use super::report::{
    Attachment, Connections, LastReload, Limit, Namespace, PodRecords, Reloads, Repairs, Table,
    Tiers, Uncovered,
};
use super::*;
use crate::workloads::testing::kernel;

#[derive(Default)]
struct Fake {
    bypass: Mutex<Vec<IpNet>>,
}

impl Handler for Fake {
    fn status(&self) -> StatusReport {
        sample()
    }

    fn bypass_add(&self, net: IpNet) -> Result<(), String> {
        self.bypass.lock().unwrap().push(net);
        Ok(())
    }

    fn bypass_del(&self, net: IpNet) -> Result<(), String> {
        let mut nets = self.bypass.lock().unwrap();
        let at = nets.iter().position(|have| *have == net);
        nets.remove(at.ok_or_else(|| format!("{net} is not bypassed"))?);
        Ok(())
    }

    fn bypass_list(&self) -> Vec<IpNet> {
        self.bypass.lock().unwrap().clone()
    }

    fn exec_info(&self) -> Result<ExecInfo, String> {
        Err("no place for commands".into())
    }

    fn offer(&self) -> Result<(Offer, Vec<OwnedFd>), String> {
        Err("it stays".into())
    }

    fn lay_down(&self) -> Result<(), String> {
        Err("it stays".into())
    }
}

pub(super) fn sample() -> StatusReport {
    StatusReport {
        name: "default".into(),
        pid: 42,
        uptime_s: 3723,
        enforcement: "strict".into(),
        outbound: "REGISTRY_ONLY".into(),
        generation: 3,
        fast_path: true,
        on_daemon_loss: "direct-tier".into(),
        repairs: Repairs { count: 1, failing: 0, last: Some("hook a was detached\x07".into()) },
        tiers: Tiers { bypass: 1, direct: 2, name: 30, proxy: 4 },
        why_proxy: [("http".to_owned(), 3)].into(),
        last_reload: Some(LastReload {
            at: "2026-01-02T03:04:05Z".into(),
            accepted: false,
            message: "p.yaml:1:1: no\x1bgood".into(),
        }),
        gateway: None,
        attachments: vec![Attachment {
            hook: "connect4".into(),
            target: "/cg/a\x1b[2Jb".into(),
            program_id: 7,
            pinned: true,
        }],
        namespaces: vec![
            Namespace {
                label: "host".into(),
                mode: "enforce".into(),
                cookie: 1,
                listener_v4: Some("127.0.0.1:15001".into()),
                listener_v6: None,
                interfaces: vec![],
                gaps: vec!["it is the daemon's".into()],
                limits: vec![],
            },
            Namespace {
                label: "pod".into(),
                mode: "audit".into(),
                cookie: 2,
                listener_v4: None,
                listener_v6: None,
                interfaces: vec!["ve1".into(), "ve2".into()],
                gaps: vec![],
                limits: vec!["privileged (app)".into()],
            },
            Namespace {
                label: "on-host".into(),
                mode: "enforce".into(),
                cookie: 1,
                listener_v4: None,
                listener_v6: None,
                interfaces: vec![],
                gaps: vec![],
                limits: vec!["hostNetwork".into()],
            },
        ],
        uncovered: vec![Uncovered { pod: "shop/a".into(), why: "hostNetwork".into() }],
        tables: vec![
            Table { name: "BYPASS_V4".into(), entries: 512, capacity: 1024 },
            Table { name: "EMPTY".into(), entries: 0, capacity: 0 },
        ],
        counters: [("refused_total".to_owned(), 9)].into(),
        connections: Connections { active: 2, total: 120, accept_failures: 0 },
        limits: vec![Limit { name: "undecided".into(), now: 1, most: 2048, refused: 3 }],
        egress_proxies: vec![],
        reloads: Reloads { accepted: 1, refused: 2 },
        records: [("not_registered".to_owned(), 5)].into(),
        pods: vec![PodRecords {
            namespace: "shop".into(),
            name: "web-0".into(),
            service_account: "web".into(),
            records: [("not_registered".to_owned(), 4), ("registered".to_owned(), 1)].into(),
        }],
        access_log_dropped: 0,
        bypass: vec!["203.0.113.0/24".into(), "2001:db8::/32".into()],
        resolvers: vec![],
    }
}

#[test]
fn status_reads_well() {
    let want = "\
interceptor default: pid 42, up 1h 02m 03s
  enforcement        strict
  outbound           REGISTRY_ONLY
  policy generation  3
  last reload        REFUSED at 2026-01-02T03:04:05Z: p.yaml:1:1: no?good
  fast path          true
  on daemon loss     direct-tier
  repairs            1 made; the last: hook a was detached?
  by tier            bypass 1, direct 2, name 30, proxy 4
  connections        2 open, 120 in all
  access log         0 lines dropped
  resolvers          none
  bypass             203.0.113.0/24, 2001:db8::/32

  HOOK      PROGRAM  PINNED  CGROUP OR INTERFACE
  connect4  7        yes     /cg/a?[2Jb

  NAMESPACE  MODE     COOKIE  IPV4             IPV6     LAYERS
  host       enforce  1       127.0.0.1:15001  refused  sockets only: it is the daemon's
  pod        audit    2       refused          refused  both, at ve1, ve2; privileged (app)
  on-host    enforce  1       refused          refused  sockets only; hostNetwork

  NOT COVERED  WHY
  shop/a       hostNetwork

  TABLE      ENTRIES  CAPACITY  FULL
  BYPASS_V4  512      1024      50 %
  EMPTY      0        0         -

  LIMIT      NOW  AT MOST  REFUSED
  undecided  1    2048     3

  PROXIED FOR  CONNECTIONS
  http         3

  REASON          RECORDS
  not_registered  5

  POD         SERVICE ACCOUNT  RECORDS
  shop/web-0  web              not_registered 4, registered 1

  COUNTER        VALUE
  refused_total  9
";
    assert_eq!(sample().to_string(), want);
}

#[test]
fn status_as_json_has_the_field_names() {
    let json: serde_json::Value = serde_json::from_str(&sample().to_json().unwrap()).unwrap();
    assert_eq!(json["attachments"][0]["program_id"], 7);
    assert_eq!(json["namespaces"][0]["listener_v6"], serde_json::Value::Null);
    assert_eq!(json["counters"]["refused_total"], 9);
}

#[test]
fn requests_have_one_form() {
    for (line, want) in [
        (r#"{"request":"status"}"#, Some(Request::Status {})),
        (
            r#"{"request":"bypass_add","cidr":"192.0.2.0/24"}"#,
            Some(Request::BypassAdd { cidr: "192.0.2.0/24".into() }),
        ),
        (r#"{"request":"exec_info"}"#, Some(Request::ExecInfo {})),
        (r#"{"request":"take_over","contract":4}"#, Some(Request::TakeOver { contract: 4 })),
        (r#"{"request":"go"}"#, Some(Request::Go {})),
        (r#"{"request":"status","more":1}"#, None),
        (r#"{"request":"bypass_add"}"#, None),
        (r#"{"request":"shutdown"}"#, None),
        ("[]", None),
    ] {
        assert_eq!(serde_json::from_str(line).ok(), want, "{line}");
    }
}

/// Starts a server in `dir`; aborting the task drops it.
fn serve(dir: &TempDir) -> tokio::task::JoinHandle<()> {
    let server = Server::bind(dir.path(), "t").unwrap();
    tokio::spawn(server.serve(Arc::new(Fake::default())))
}

async fn ask(dir: &TempDir, request: Request) -> Result<Answer, AdminError> {
    let dir = dir.path().to_owned();
    spawn_blocking(move || request_in(&dir, "t", &request)).await.unwrap()
}

async fn ask_raw(dir: &TempDir, bytes: Vec<u8>) -> String {
    let path = socket_path(dir.path(), "t");
    spawn_blocking(move || {
        let mut socket = UnixStream::connect(path).unwrap();
        socket.write_all(&bytes).unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn every_request_is_answered() {
    if !kernel("every_request_is_answered") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let server = serve(&dir);
    assert_eq!(ask(&dir, Request::Status {}).await.unwrap(), Answer::Status(Box::new(sample())));
    let add = |cidr: &str| Request::BypassAdd { cidr: cidr.into() };
    assert_eq!(ask(&dir, add("203.0.113.0/24")).await.unwrap(), Answer::Done);
    assert_eq!(ask(&dir, add("2001:db8::1")).await.unwrap(), Answer::Done);
    let list = ask(&dir, Request::BypassList {}).await.unwrap();
    assert_eq!(list, Answer::Bypass(vec!["203.0.113.0/24".into(), "2001:db8::1/128".into()]));
    let del = Request::BypassDel { cidr: "203.0.113.0/24".into() };
    assert_eq!(ask(&dir, del.clone()).await.unwrap(), Answer::Done);
    for (request, why) in [
        (del, "203.0.113.0/24 is not bypassed"),
        (add("10.0.0.1/8"), "write 10.0.0.0/8"),
        (Request::ExecInfo {}, "no place for commands"),
    ] {
        let error = ask(&dir, request).await.unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(error.exit(), Exit::Failure);
    }
    server.abort();
}

#[tokio::test]
async fn broken_requests_get_an_error_and_the_next_client_its_answer() {
    if !kernel("broken_requests_get_an_error_and_the_next_client_its_answer") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let server = serve(&dir);
    for (bytes, why) in [
        (Vec::new(), "cut off"),
        (b"{\"request\":\"status\"}".to_vec(), "cut off"),
        (b"\xff\xfe\n".to_vec(), "cannot be read"),
        (b"{}\n".to_vec(), "cannot be read"),
        (vec![b' '; 64 * 1024], "too long"),
    ] {
        let answer = ask_raw(&dir, bytes).await;
        assert!(answer.starts_with("{\"error\":") && answer.contains(why), "{why}: {answer}");
    }
    assert!(ask(&dir, Request::BypassList {}).await.is_ok());
    server.abort();
}

#[tokio::test]
async fn silent_clients_do_not_lock_others_out_for_ever() {
    if !kernel("silent_clients_do_not_lock_others_out_for_ever") {
        return;
    }
    let dir = TempDir::new().unwrap();
    let server = serve(&dir);
    let path = socket_path(dir.path(), "t");
    let silent: Vec<_> = (0..16).map(|_| UnixStream::connect(&path).unwrap()).collect();
    // Served when the 16 slots are free again, after the deadline of 5 s: the client waits 10 s.
    assert!(ask(&dir, Request::BypassList {}).await.is_ok());
    drop(silent);
    server.abort();
}

/// T-58.
#[tokio::test]
async fn the_socket_is_roots_alone_and_goes_away() {
    let top = TempDir::new().unwrap();
    let dir = top.path().join("interceptor");
    fs_mode(top.path(), 0o755);
    let server = Server::bind(&dir, "t").unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&socket_path(&dir, "t")), 0o600);

    let error = Server::bind(&dir, "t").unwrap_err();
    assert!(matches!(&error, AdminError::AlreadyRunning(name) if name == "t"), "{error}");
    assert_eq!(error.exit().code(), 73);
    drop(Server::bind(&dir, "other").unwrap());

    drop(server);
    assert!(!socket_path(&dir, "t").exists());
    assert!(dir.exists(), "it may be a mount point elsewhere");
}

#[tokio::test]
async fn what_a_dead_daemon_left_is_replaced() {
    let dir = TempDir::new().unwrap();
    let path = socket_path(dir.path(), "t");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let error = ask(&dir, Request::Status {}).await.unwrap_err();
    assert!(error.to_string().contains("interceptor run --name t"), "{error}");
    assert_eq!(error.exit(), Exit::Failure);
    Server::clean_stale(dir.path(), "t").unwrap();
    assert!(!path.exists());
    Server::clean_stale(dir.path(), "t").expect("gone already is as good");
    drop(UnixListener::bind(&path).unwrap());
    let server = Server::bind(dir.path(), "t").unwrap();
    let error = Server::clean_stale(dir.path(), "t").unwrap_err();
    assert_eq!(error.exit().code(), 73, "not of one that runs");
    // A predecessor that ends late does not remove its successor's.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "").unwrap();
    drop(server);
    assert!(path.exists());
}

/// A daemon that ends with a client's question taken in, since another one has its place.
#[test]
fn who_is_left_without_an_answer_asks_the_successor() {
    let dir = TempDir::new().unwrap();
    let listener = UnixListener::bind(socket_path(dir.path(), "t")).unwrap();
    let both = std::thread::spawn(move || {
        let (ended, _) = listener.accept().unwrap();
        drop(ended);
        let (mut asked, _) = listener.accept().unwrap();
        let mut line = [0; 64];
        let length = asked.read(&mut line).unwrap();
        asked.write_all(&serde_json::to_vec(&Answer::Done).unwrap()).unwrap();
        String::from_utf8_lossy(&line[..length]).into_owned()
    });
    let request = Request::BypassAdd { cidr: "192.0.2.0/24".into() };
    assert_eq!(request_in(dir.path(), "t", &request).unwrap(), Answer::Done);
    assert!(both.join().unwrap().contains("192.0.2.0/24"));
}

#[test]
fn a_stopped_daemon_is_told_from_none() {
    let dir = TempDir::new().unwrap();
    let _listens = UnixListener::bind(socket_path(dir.path(), "t")).unwrap();
    let patience = std::time::Duration::from_millis(50);
    let error = request_within(patience, dir.path(), "t", &Request::Status {}).unwrap_err();
    assert!(matches!(error, AdminError::NoAnswer(_)), "{error}");
}

#[tokio::test]
async fn a_directory_that_is_not_ours_is_refused() {
    let top = TempDir::new().unwrap();
    let real = top.path().join("real");
    std::fs::create_dir(&real).unwrap();
    let link = top.path().join("link");
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let error = Server::bind(&link, "t").unwrap_err();
    assert!(matches!(error, AdminError::Directory(_)), "{error}");
}

fn fs_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}
