use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};

use super::*;
use crate::workloads::testing::{TestCgroup, kernel};

fn hierarchy(table: &str) -> Option<Hierarchy> {
    Hierarchy::find(&mounts::parse(table.as_bytes()))
}

#[test]
fn the_hierarchy_is_found_where_systems_mount_it() {
    let cases = [
        (
            "pure v2",
            "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec - cgroup2 cgroup2 rw\n",
            Some(("/", "/sys/fs/cgroup")),
        ),
        (
            "hybrid",
            "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
             32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
            Some(("/", "/sys/fs/cgroup/unified")),
        ),
        (
            "a part of the tree besides the whole",
            "40 31 0:38 /a/b /mnt/part rw - cgroup2 cgroup2 rw\n\
             41 31 0:38 / /mnt/all rw - cgroup2 cgroup2 rw\n",
            Some(("/", "/mnt/all")),
        ),
        ("v1 only", "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n", None),
        ("none", "", None),
    ];
    for (name, table, want) in cases {
        let found = hierarchy(table);
        let got = found.as_ref().map(|h| (h.root.to_str().unwrap(), h.point.to_str().unwrap()));
        assert_eq!(got, want, "{name}");
    }
}

#[test]
fn own_cgroup_is_the_version_2_line() {
    let cases = [
        ("/", "12:cpu:/x\n0::/\n", Some("/cg")),
        ("/", "0::/user.slice/session-1.scope\n", Some("/cg/user.slice/session-1.scope")),
        ("/docker/1", "0::/docker/1/app\n", Some("/cg/app")),
        ("/docker/1", "0::/docker/12\n", None),
        ("/", "0::/../other\n", None),
        ("/", "0::/a (deleted)\n", None),
        ("/", "1:cpu:/\n", None),
    ];
    for (root, table, want) in cases {
        let hierarchy = Hierarchy { root: root.into(), point: "/cg".into() };
        let got = hierarchy.own_in(table).ok();
        assert_eq!(got.map(|own| own.path), want.map(PathBuf::from), "{root} {table}");
    }
}

#[test]
fn each_error_has_its_status() {
    let denied = |code| CgroupError::Io {
        what: "create cgroup",
        path: "/x".into(),
        source: io::Error::from_raw_os_error(code),
    };
    for (error, exit) in [
        (CgroupError::NoHierarchy, Exit::MissingKernelFeature),
        (CgroupError::NotFound("a".into(), "b".into()), Exit::Busy),
        (CgroupError::NotCgroup2("a".into(), "b".into()), Exit::Busy),
        (CgroupError::Busy("a".into(), vec![7, 8]), Exit::Busy),
        (denied(libc::EACCES), Exit::Privilege),
        (denied(libc::EROFS), Exit::Privilege),
        (denied(libc::EIO), Exit::Internal),
    ] {
        assert_eq!(error.exit(), exit, "{error}");
    }
    let busy = CgroupError::Busy("/cg/a".into(), vec![7, 8]).to_string();
    assert!(busy.contains("pid 7, 8"), "{busy}");
}

#[test]
fn a_given_path_is_taken_absolute_or_relative() {
    if !kernel("a_given_path_is_taken_absolute_or_relative") {
        return;
    }
    let test = TestCgroup::new();
    let hierarchy = Hierarchy::discover().unwrap();
    let relative = test.0.path.strip_prefix(hierarchy.mount_point()).unwrap();
    for given in [test.0.path.clone(), relative.to_owned(), Path::new("/").join(relative)] {
        let found = hierarchy.resolve(&given).unwrap();
        assert_eq!(found, test.0, "{}", given.display());
        assert_eq!(found.id().unwrap(), fs::metadata(&test.0.path).unwrap().ino());
    }
    for (given, want) in [
        ("no/such/cgroup", "exists neither"),
        ("/no/such/cgroup", "exists neither"),
        ("/usr", "not a cgroup v2 directory"),
        ("cgroup.procs", "not a cgroup v2 directory"),
        ("../..", "not a cgroup v2 directory"),
    ] {
        let error = hierarchy.resolve(Path::new(given)).unwrap_err();
        assert!(error.to_string().contains(want), "{given}: {error}");
        assert_eq!(error.exit().code(), 73, "{given}");
    }
}

fn start(cgroup: &Cgroup, script: &str) -> Child {
    // Ready when the script says so, so that its trap is set.
    let mut child = Command::new("sh")
        .args(["-c", script])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    cgroup.add(child.id()).unwrap();
    let mut ready = [0];
    io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
    child
}

#[tokio::test]
async fn terminate_asks_first_and_kills_what_stays() {
    if !kernel("terminate_asks_first_and_kills_what_stays") {
        return;
    }
    let test = TestCgroup::new();
    let below = test.0.create("below").unwrap();
    let again = test.0.create("below").unwrap();
    assert_eq!(below, again, "one that exists is taken");

    let asked = "trap 'exit 3' TERM; echo; while :; do sleep 0.05; done";
    let stubborn = "trap '' TERM; echo; while :; do sleep 0.05; done";
    let stopped = "echo; kill -STOP $$; sleep 60";
    let mut asked = start(&test.0, asked);
    let mut stopped = start(&test.0, stopped);
    let mut stubborn = start(&below, stubborn);
    let mut pids = vec![asked.id(), stopped.id(), stubborn.id()];
    pids.sort_unstable();
    let seen = test.0.procs().unwrap();
    assert!(pids.iter().all(|pid| seen.contains(pid)), "{pids:?} in {seen:?}");
    assert!(test.0.remove().is_err(), "a cgroup in use stays");

    let grace = Duration::from_millis(400);
    let before = std::time::Instant::now();
    test.0.terminate(grace).await.unwrap();
    assert!(before.elapsed() >= grace, "the stubborn one had its grace");
    assert_eq!(test.0.procs().unwrap(), Vec::<u32>::new());
    assert_eq!(asked.wait().unwrap().code(), Some(3));
    assert_eq!(stopped.wait().unwrap().signal(), Some(libc::SIGTERM));
    assert_eq!(stubborn.wait().unwrap().signal(), Some(libc::SIGKILL));

    test.0.remove().unwrap();
    assert!(!test.0.path.exists());
    test.0.remove().expect("gone already is as good");
    test.0.terminate(grace).await.expect("gone already is as good");
}

#[tokio::test]
async fn terminate_does_not_wait_for_nothing() {
    if !kernel("terminate_does_not_wait_for_nothing") {
        return;
    }
    let test = TestCgroup::new();
    let mut child = start(&test.0, "echo; exec sleep 60");
    let before = std::time::Instant::now();
    test.0.terminate(Duration::from_secs(30)).await.unwrap();
    assert!(before.elapsed() < Duration::from_secs(10));
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGTERM));
}

#[tokio::test]
async fn terminate_spares_ourselves_and_the_top() {
    if !kernel("terminate_spares_ourselves_and_the_top") {
        return;
    }
    let hierarchy = Hierarchy::discover().unwrap();
    let top = hierarchy.resolve(hierarchy.mount_point()).unwrap();
    let error = top.terminate(Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(error, CgroupError::NotOurs(..)), "{error}");
}

#[test]
fn a_level_is_counted_from_the_top_of_the_tree() {
    for (root, point) in [("/", "/sys/fs/cgroup"), ("/", "/sys/fs/cgroup/unified"), ("/a", "/part")]
    {
        let hierarchy = Hierarchy { root: root.into(), point: point.into() };
        let above = u32::from(root != "/");
        for (path, level) in [("", 0), ("kubepods", 1), ("k.slice/k-kubepods.slice/x.slice", 3)] {
            let cgroup = Cgroup { path: hierarchy.join(Path::new(path)) };
            let expected = is_first().then_some(above + level);
            assert_eq!(hierarchy.level(&cgroup), expected, "{root} {point} {path}");
        }
        assert_eq!(hierarchy.level(&Cgroup { path: "/elsewhere".into() }), None);
    }
}
