use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;

use nix::mount::{MntFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use super::*;
use crate::workloads::testing::{TestCgroup, kernel};

/// A place that every user may write to, and a cgroup.
struct Room {
    dir: TempDir,
    cgroup: TestCgroup,
}

impl Room {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        Self { dir, cgroup: TestCgroup::new() }
    }

    fn launch(&self, argv: &[&str]) -> Launch<'_> {
        Launch {
            argv: argv.iter().map(OsString::from).collect(),
            cgroup: &self.cgroup.0,
            netns: None,
            etc_netns: None,
            run_as: RunAs::Root,
            keep_caps: false,
            files: Vec::new(),
            also_keep: &[],
            hide: Vec::new(),
            descriptors: None,
        }
    }

    /// What a script has to say about itself, as `key=value` lines in the file $1.
    async fn report(
        &self,
        script: &str,
        change: impl FnOnce(&mut Launch),
    ) -> HashMap<String, String> {
        let out = self.dir.path().join("report");
        let mut launch = self.launch(&["sh", "-c", script, "sh", out.to_str().unwrap()]);
        change(&mut launch);
        let exit = launch.spawn().unwrap().wait().await.unwrap();
        assert_eq!(exit, Exit::Command(0));
        let text = fs::read_to_string(&out).unwrap();
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }
}

const STATUS: &str = r#"exec >"$1"; echo "cgroup=$(grep ^0:: /proc/self/cgroup)"
    sed -n 's/^\(Cap[A-Z][a-z]*\|NoNewPrivs\|Uid\|Gid\|Groups\|SigBlk\):\s*/\1=/p' /proc/self/status
    echo "sigpipe=$(awk '/^SigIgn/ {print substr($2, 13, 1)}' /proc/self/status)"
    echo "home=$HOME"; echo "user=$USER"; echo "logname=$LOGNAME""#;

/// The bits of KEPT_BY_ROOT: a container's usual set without NET_RAW and MKNOD.
const ROOT_CAPS: &str = "00000000a00405fb";
const NO_CAPS: &str = "0000000000000000";

#[tokio::test]
async fn a_root_command_is_covered_and_confined() {
    if !kernel("a_root_command_is_covered_and_confined") {
        return;
    }
    let room = Room::new();
    let report = room.report(STATUS, |_| {}).await;
    let name = room.cgroup.0.path().file_name().unwrap().to_str().unwrap();
    assert!(report["cgroup"].ends_with(name), "{report:?}");
    for (key, want) in [
        ("CapInh", NO_CAPS),
        ("CapPrm", ROOT_CAPS),
        ("CapEff", ROOT_CAPS),
        ("CapBnd", ROOT_CAPS),
        ("CapAmb", NO_CAPS),
        ("NoNewPrivs", "1"),
        ("SigBlk", NO_CAPS),
    ] {
        assert_eq!(report[key], want, "{key} in {report:?}");
    }
    // The digit of signals 13 to 16: what else the tests' own starter ignores is not our matter.
    assert_eq!(report["sigpipe"], "0", "SIGPIPE has its default: {report:?}");
}

/// What we hold as inheritable or ambient would outlast the bounding set at exec.
#[tokio::test]
async fn inherited_capabilities_are_dropped_too() {
    if !kernel("inherited_capabilities_are_dropped_too") {
        return;
    }
    let room = Room::new();
    // Capabilities are a thread's own: this changes no other test.
    for set in [caps::CapSet::Inheritable, caps::CapSet::Ambient] {
        caps::raise(None, set, Capability::CAP_NET_RAW).unwrap();
    }
    let report = room.report(STATUS, |_| {}).await;
    for (key, want) in [("CapInh", NO_CAPS), ("CapEff", ROOT_CAPS), ("CapAmb", NO_CAPS)] {
        assert_eq!(report[key], want, "{key} in {report:?}");
    }
}

#[tokio::test]
async fn the_invoker_gets_no_capability_and_its_own_identity() {
    if !kernel("the_invoker_gets_no_capability_and_its_own_identity") {
        return;
    }
    let room = Room::new();
    for keep_caps in [false, true] {
        let report = room
            .report(STATUS, |launch| {
                launch.keep_caps = keep_caps;
                launch.run_as =
                    RunAs::Invoker { uid: 65534, gid: 65534, user: Some("nobody".into()) };
            })
            .await;
        let tabs = "65534\t65534\t65534\t65534";
        for (key, want) in [
            ("Uid", tabs),
            ("Gid", tabs),
            ("CapPrm", NO_CAPS),
            ("CapEff", NO_CAPS),
            ("CapAmb", NO_CAPS),
            ("NoNewPrivs", "1"),
            ("user", "nobody"),
            ("logname", "nobody"),
            ("home", "/nonexistent"),
        ] {
            assert_eq!(report[key], want, "{key} in {report:?}");
        }
        assert_eq!(report["Groups"].trim(), "65534");
        assert_eq!(report["CapBnd"] == NO_CAPS, !keep_caps, "{report:?}");
    }
}

#[tokio::test]
async fn keep_caps_keeps_them_and_nothing_else_changes() {
    if !kernel("keep_caps_keeps_them_and_nothing_else_changes") {
        return;
    }
    let room = Room::new();
    let report = room.report(STATUS, |launch| launch.keep_caps = true).await;
    let effective = u64::from_str_radix(&report["CapEff"], 16).unwrap();
    assert_ne!(effective & Capability::CAP_NET_RAW.bitmask(), 0, "{report:?}");
    assert_eq!(report["NoNewPrivs"], "1");
}

/// A bpffs of the test's own.
struct BpfFs(TempDir);

impl BpfFs {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let none = None::<&str>;
        mount(Some("none"), dir.path(), Some("bpf"), MsFlags::empty(), none).unwrap();
        fs::create_dir(dir.path().join("pinned")).unwrap();
        Self(dir)
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

/// T-9, T-12, T-15: the ways out through the file system.
#[tokio::test]
async fn cgroups_are_read_only_and_bpf_and_control_sockets_hidden() {
    if !kernel("cgroups_are_read_only_and_bpf_and_control_sockets_hidden") {
        return;
    }
    let room = Room::new();
    let bpf = BpfFs::new();
    let hidden = TempDir::new().unwrap();
    fs::write(hidden.path().join("default.sock"), "").unwrap();
    let top = crate::workloads::cgroup::Hierarchy::discover().unwrap();
    let before = mounts::mounts().unwrap();
    let script = format!(
        r#"exec >"$1"
        try() {{ echo "$1=$(sh -c "$2" 2>&1 | tr '\n' ' ')"; }}
        try leave 'echo $$ > {top}/cgroup.procs'
        try child 'mkdir {own}/x'
        try bpf 'mkdir {bpf}/x'
        try pinned 'ls -A {bpf}'
        try sockets 'ls -A {hidden}'
        try put 'touch {hidden}/x'
        try remount 'mount -o remount,rw {top}'
        try unmount 'umount {hidden}'
        for line in $(awk '$3 ~ /^cgroup/ {{print $2 "," $4}}' /proc/mounts); do
            case "$line" in *,ro*) ;; *) echo "writable=$line";; esac
        done"#,
        top = top.mount_point().display(),
        own = room.cgroup.0.path().display(),
        bpf = bpf.0.path().display(),
        hidden = hidden.path().display(),
    );
    let report = room.report(&script, |launch| launch.hide = vec![hidden.path().into()]).await;
    for (key, want) in [
        ("leave", "Read-only file system"),
        ("child", "Read-only file system"),
        ("bpf", "Read-only file system"),
        ("put", "Read-only file system"),
        ("remount", "permission denied"),
        ("unmount", "must be superuser"),
    ] {
        assert!(report[key].contains(want), "{key} in {report:?}");
    }
    assert_eq!(report["pinned"], "", "pinned objects cannot be opened");
    assert_eq!(report["sockets"], "", "control sockets cannot be reached");
    assert_eq!(report.get("writable"), None);

    assert!(hidden.path().join("default.sock").exists(), "only the command's view changed");
    let mine = |mounts: &[mounts::Mount]| -> Vec<_> {
        mounts.iter().filter(|mount| mount.fs_type.starts_with("cgroup")).cloned().collect()
    };
    assert_eq!(mine(&mounts::mounts().unwrap()), mine(&before));
}

/// T-8, T-9: in a user namespace of its own, where it holds every capability, a command finds the
/// same mounts, locked; and of cgroups only what lies below its own.
#[tokio::test]
async fn a_user_namespace_opens_nothing() {
    if !kernel("a_user_namespace_opens_nothing") {
        return;
    }
    let room = Room::new();
    let bpf = BpfFs::new();
    let top = crate::workloads::cgroup::Hierarchy::discover().unwrap();
    let mount_point = room.dir.path().join("mnt");
    fs::create_dir(&mount_point).unwrap();
    let script = format!(
        r#"exec >"$1"
        try() {{ echo "$1=$(unshare $2 sh -c "$3" 2>&1 | tr '\n' ' ')"; }}
        try caps -Urm 'grep CapEff /proc/self/status'
        try unmount -Urm 'umount {bpf}; ls -A {bpf}'
        try remount -Urm 'mount -o remount,rw,bind {top}; echo 0 > {top}/cgroup.procs'
        try cgroup2 -Urm 'mount -t cgroup2 none {mnt} && ls {mnt}'
        try own -UrmC 'mount -t cgroup2 none {mnt} && cd {mnt} && ls -d interceptor-unit-*'
        try bpffs -Urm 'mount -t bpf none {mnt} && ls -A {mnt}'
        "#,
        bpf = bpf.0.path().display(),
        top = top.mount_point().display(),
        mnt = mount_point.display(),
    );
    let report = room.report(&script, |_| {}).await;
    assert!(!report["caps"].contains(NO_CAPS), "it does hold capabilities: {report:?}");
    assert!(!report["unmount"].contains("pinned"), "{report:?}");
    assert!(report["remount"].contains("Read-only file system"), "{report:?}");
    assert!(report["cgroup2"].contains("permission denied"), "{report:?}");
    assert!(report["own"].contains("cannot access"), "no cgroup but those below: {report:?}");
    assert!(!report["bpffs"].contains("pinned"), "{report:?}");
}

#[tokio::test]
async fn the_network_namespace_is_entered() {
    if !kernel("the_network_namespace_is_entered") {
        return;
    }
    let made = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let path = "/proc/thread-self/ns/net";
        (File::open(path).unwrap(), fs::read_link(path).unwrap())
    });
    let (file, link) = made.join().unwrap();
    let room = Room::new();
    let script = r#"echo "net=$(readlink /proc/self/ns/net)" > "$1""#;
    let report = room.report(script, |launch| launch.netns = Some(file.into())).await;
    assert_eq!(report["net"], link.to_str().unwrap());
}

#[test]
fn files_of_a_namespace_lie_over_those_of_etc() {
    let top = TempDir::new().unwrap();
    fs::create_dir(top.path().join("blue")).unwrap();
    fs::write(top.path().join("blue/resolv.conf"), "").unwrap();
    let steps = |name| {
        let mut steps = Vec::new();
        etc_steps(&mut steps, top.path(), name).map(|()| steps)
    };
    let blue: Vec<String> = steps("blue").unwrap().iter().map(ToString::to_string).collect();
    let from = top.path().join("blue/resolv.conf");
    assert_eq!(blue, [format!("mount {} over /etc/resolv.conf", from.display())]);
    assert!(steps("red").unwrap().is_empty(), "a namespace need not have any");
    for bad in ["", ".", "..", "a/b"] {
        assert!(matches!(steps(bad), Err(LaunchError::NetnsName(_))), "{bad}");
    }
}

#[tokio::test]
async fn exit_statuses_are_those_of_a_shell() {
    if !kernel("exit_statuses_are_those_of_a_shell") {
        return;
    }
    let room = Room::new();
    let script = room.dir.path().join("not-executable");
    fs::write(&script, "#!/bin/sh\n").unwrap();
    for (argv, code) in [
        (vec!["true"], 0),
        (vec!["sh", "-c", "exit 7"], 7),
        (vec!["sh", "-c", "kill -KILL $$"], 137),
        (vec!["sh", "-c", "kill -TERM $$"], 143),
        (vec!["/no/such/program"], 127),
        (vec!["no-such-program"], 127),
        (vec![script.to_str().unwrap()], 126),
        (vec!["/"], 126),
    ] {
        let exit = match room.launch(&argv).spawn() {
            Ok(mut launched) => launched.wait().await.unwrap(),
            Err(error) => error.exit(),
        };
        assert_eq!(exit.code(), code, "{argv:?}");
    }
    let empty = room.launch(&[]).spawn().unwrap_err();
    assert_eq!(empty.exit(), Exit::Usage);
}

#[tokio::test]
async fn a_step_that_fails_is_named_and_nothing_runs() {
    if !kernel("a_step_that_fails_is_named_and_nothing_runs") {
        return;
    }
    let room = Room::new();
    let mark = room.dir.path().join("ran");
    let mut launch = room.launch(&["touch", mark.to_str().unwrap()]);
    launch.hide = vec!["/no/such/directory".into()];
    let error = launch.spawn().unwrap_err();
    let text = error.to_string();
    assert!(text.contains("hide /no/such/directory: No such file"), "{text}");
    assert!(!mark.exists());
}

#[tokio::test]
async fn signals_are_passed_on() {
    if !kernel("signals_are_passed_on") {
        return;
    }
    let room = Room::new();
    let mut launched = room.launch(&["sleep", "60"]).spawn().unwrap();
    assert!(room.cgroup.0.procs().unwrap().contains(&launched.pid().unwrap()));
    launched.signal(Signal::SIGTERM);
    assert_eq!(launched.wait().await.unwrap(), Exit::Signal(libc::SIGTERM));
    launched.signal(Signal::SIGTERM);
    assert_eq!(launched.wait().await.unwrap(), Exit::Signal(libc::SIGTERM), "twice is no harm");
}

#[test]
fn the_invoker_is_who_sudo_says() {
    let ada = RunAs::Invoker { uid: 1000, gid: 100, user: Some("ada".into()) };
    for (env, want) in [
        (vec![], Some(RunAs::Root)),
        (vec![("SUDO_UID", "0"), ("SUDO_GID", "0")], Some(RunAs::Root)),
        (vec![("SUDO_UID", "1000"), ("SUDO_GID", "100"), ("SUDO_USER", "ada")], Some(ada)),
        (vec![("SUDO_UID", "1000")], None),
        (vec![("SUDO_GID", "100")], None),
        (vec![("SUDO_UID", "x"), ("SUDO_GID", "100")], None),
        (vec![("SUDO_UID", "4294967295"), ("SUDO_GID", "100")], None),
        (vec![("SUDO_UID", ""), ("SUDO_GID", "")], None),
    ] {
        let env: HashMap<&str, &str> = env.into_iter().collect();
        let got = RunAs::from_env(|name| env.get(name).map(OsString::from)).ok();
        assert_eq!(got, want, "{env:?}");
    }
}

/// Root needs no capability to have a program of its choice run by the kernel, outside the cgroup.
#[tokio::test]
async fn kernel_settings_are_read_only() {
    if !kernel("kernel_settings_are_read_only") {
        return;
    }
    let room = Room::new();
    // Opens for writing and writes nothing.
    let script = r#"exec >"$1"; for file in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe \
        /proc/sysrq-trigger /sys/kernel/profiling; do
        [ -e "$file" ] || continue; (: >>"$file") 2>/dev/null && echo "$file=open" || echo "$file=closed"
    done"#;
    let report = room.report(script, |_| {}).await;
    assert_eq!(report["/proc/sys/kernel/core_pattern"], "closed", "{report:?}");
    assert!(report.values().all(|state| state == "closed"), "{report:?}");
}
