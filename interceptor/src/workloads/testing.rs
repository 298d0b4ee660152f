//! What tests against the real kernel share.

use std::sync::atomic::{AtomicU32, Ordering};

use super::PodIdentity;
use super::cgroup::{Cgroup, Hierarchy};

/// A pod like any other.
pub(crate) fn web_0() -> PodIdentity {
    PodIdentity {
        namespace: "shop".into(),
        name: "web-0".into(),
        uid: "0f0d9b4e-6c1f-4f7c-9a55-0b7d0e0a1c11".into(),
        service_account: "web".into(),
    }
}

/// Whether to run a test that needs root and the real kernel. Without root such a test fails,
/// unless INTERCEPTOR_NO_KERNEL=1 asks to leave it out.
pub(crate) fn kernel(test: &str) -> bool {
    if std::env::var_os("INTERCEPTOR_NO_KERNEL").is_some_and(|value| value == "1") {
        eprintln!("LEFT OUT {test}: INTERCEPTOR_NO_KERNEL=1");
        return false;
    }
    assert!(
        nix::unistd::geteuid().is_root(),
        "{test} needs root and cgroup v2; INTERCEPTOR_NO_KERNEL=1 leaves it out"
    );
    true
}

/// A new cgroup at the top of the tree. Goes away with the value, killing what is in it.
pub(crate) struct TestCgroup(pub(crate) Cgroup);

impl TestCgroup {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let hierarchy = Hierarchy::discover().unwrap();
        let top = hierarchy.resolve(hierarchy.mount_point()).unwrap();
        let name = format!("interceptor-unit-{}-{number}", std::process::id());
        Self(top.create(&name).unwrap())
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        let _ = std::fs::write(self.0.path().join("cgroup.kill"), "1");
        for _ in 0..100 {
            if self.0.remove().is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}
