//! Pods as a node has them: a network namespace with a link to the node, the CNI plugin called as
//! containerd calls it, and containers by runc, in the cgroup that kubelet would give them.
//!
//! ```text
//!  pod                            …-workload (the node)            …-net
//!  10.81.x.y ──veth── 10.81.x.(y-1)      10.77.0.2 ──veth── 10.77.0.1 (see world.rs)
//! ```
//!
//! With the cgroupfs driver and both layouts mounted, runc 1.1 puts the container's process into the same
//! path of each v1 controller and of the v2 tree before it starts the program, so nothing else is needed.

use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::capture::Capture;
use crate::netns::{Namespace, next_number};
use crate::pod::forward;
use crate::snapshot::cgroup2_mount;
use crate::world::{Finished, WORKLOAD_V4, World};

/// How long a container may run.
const LIMIT: Duration = Duration::from_secs(30);

/// What containers find under `/client`.
const CLIENT: &str = "/client";

/// A node's pods. Dropping it removes their cgroups.
#[derive(Debug)]
pub struct Node<'w> {
    world: &'w World,
    dir: TempDir,
    /// kubelet's `--cgroup-root`.
    cgroup_root: String,
    /// Who made it removes it.
    is_ours: bool,
}

/// A pod's sandbox. Dropping it removes the namespace and the link.
#[derive(Debug)]
pub struct Sandbox {
    /// `None`: the node's.
    namespace: Option<Namespace>,
    /// Its address.
    pub address: Ipv4Addr,
    id: String,
    uid: String,
    /// The pod's namespace in Kubernetes.
    pub of: String,
}

/// What a plugin answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// 0, or the specification's number of the error.
    pub code: u64,
    /// What it wrote.
    pub said: Value,
}

impl<'w> Node<'w> {
    /// Makes a router of the world's workload namespace, and the pods' cgroup. `client`: the program that
    /// containers run.
    ///
    /// # Errors
    /// When there is no runc, or something cannot be made.
    pub fn new(world: &'w World, client: &Path) -> Result<Self> {
        let root = format!("ix-{}-{}-kubelet", std::process::id(), next_number());
        let mut node = Self::below(world, client, &root)?;
        node.is_ours = true;
        fs::create_dir_all(node.pods_cgroup()?)?;
        Ok(node)
    }

    /// The same, below a cgroup of v2 that somebody else made: kubelet's `--cgroup-root`.
    ///
    /// # Errors
    /// As [`Node::new`].
    pub fn below(world: &'w World, client: &Path, cgroup_root: &str) -> Result<Self> {
        let runc = Command::new("runc").arg("--version").stdin(Stdio::null()).output();
        ensure!(runc.is_ok_and(|said| said.status.success()), "no runc: apt-get install runc");
        forward(&world.workload)?;
        world.internet.ip(&["route", "add", "10.81.0.0/16", "via", "10.77.0.2"])?;
        let dir = tempfile::Builder::new().prefix("interceptor-node-").tempdir()?;
        let rootfs = dir.path().join("rootfs");
        for place in ["proc", "usr", "dev", "tmp"] {
            fs::create_dir_all(rootfs.join(place))?;
        }
        for link in ["bin", "lib", "lib64"] {
            symlink(format!("usr/{link}"), rootfs.join(link))?;
        }
        fs::copy(client, rootfs.join(&CLIENT[1..])).context("the client")?;
        Ok(Self { world, dir, cgroup_root: cgroup_root.to_owned(), is_ours: false })
    }

    /// Starts to capture at the far side.
    ///
    /// # Errors
    /// As [`World::capture`].
    pub fn capture(&self) -> Result<Capture> {
        self.world.capture()
    }

    /// kubelet's `--cgroup-root`.
    #[must_use]
    pub fn cgroup_root(&self) -> String {
        format!("/{}", self.cgroup_root)
    }

    /// The cgroup of all pods.
    ///
    /// # Errors
    /// When there is no cgroup v2.
    pub fn pods_cgroup(&self) -> Result<PathBuf> {
        let mount = cgroup2_mount().context("no cgroup v2 mount")?;
        Ok(mount.join(&self.cgroup_root).join("kubepods"))
    }

    /// Makes a pod's network, as the first plugin of a chain does: link, address, route.
    ///
    /// # Errors
    /// When the namespace or the link can't be made.
    pub fn sandbox(&self, of: &str) -> Result<Sandbox> {
        let number = next_number();
        let namespace = Namespace::create(number, "sandbox")?;
        // A network of four addresses each.
        let base = u32::from(Ipv4Addr::new(10, 81, 0, 0)) + number % 16_384 * 4;
        let [gateway, address] = [base + 1, base + 2].map(Ipv4Addr::from);
        let node = &self.world.workload;
        let end = format!("pod{number}");
        let link = ["link", "add", &end, "type", "veth", "peer", "name", "eth0"];
        node.ip(&[&link[..], &["netns", namespace.name()]].concat())?;
        for (at, device, address) in [(node, end.as_str(), gateway), (&namespace, "eth0", address)]
        {
            at.ip(&["addr", "add", &format!("{address}/30"), "dev", device])?;
            at.ip(&["link", "set", device, "up"])?;
        }
        namespace.ip(&["route", "add", "default", "via", &gateway.to_string()])?;
        Ok(Sandbox::new(number, Some(namespace), address, of))
    }

    /// Makes what a pod with `hostNetwork` has before its first container: the cgroup that kubelet gives it.
    ///
    /// # Errors
    /// When that can't be made.
    pub fn host_sandbox(&self, of: &str) -> Result<Sandbox> {
        let IpAddr::V4(address) = WORKLOAD_V4 else { bail!("the node's address is IPv4") };
        let sandbox = Sandbox::new(next_number(), None, address, of);
        let cgroup = self.pods_cgroup()?.join("burstable").join(format!("pod{}", sandbox.uid));
        fs::create_dir_all(&cgroup).with_context(|| cgroup.display().to_string())?;
        Ok(sandbox)
    }

    /// Calls the plugin `binary` about a sandbox, as containerd does. `network`: its configuration, but for
    /// what the runtime puts in.
    ///
    /// # Errors
    /// When it can't be started, or answers with something that is not JSON.
    pub fn plugin(
        &self,
        binary: &Path,
        command: &str,
        sandbox: &Sandbox,
        network: &Value,
    ) -> Result<Answer> {
        let mut input = network.clone();
        input["cniVersion"] = "1.0.0".into();
        input["name"] = "k8s-pod-network".into();
        input["type"] = "interceptor-cni".into();
        input["cgroupRoot"] = self.cgroup_root().into();
        let netns = sandbox.namespace.as_ref().context("a pod with a network of its own")?.path();
        input["prevResult"] = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "eth0", "sandbox": netns}],
            "ips": [{"address": format!("{}/30", sandbox.address), "interface": 0}],
        });
        let Sandbox { id, uid, of, .. } = sandbox;
        let arguments = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={of};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={id};\
             K8S_POD_UID={uid}",
            sandbox.name()
        );
        let mut plugin = Command::new(binary);
        plugin.arg0("/opt/cni/bin/interceptor-cni").env_clear();
        plugin.env("CNI_COMMAND", command).env("CNI_CONTAINERID", id).env("CNI_IFNAME", "eth0");
        plugin.env("CNI_NETNS", netns).env("CNI_ARGS", arguments);
        plugin.env("CNI_PATH", "/opt/cni/bin").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        plugin.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = plugin.spawn().context("the plugin")?;
        let mut stdin = child.stdin.take().context("its standard input")?;
        stdin.write_all(input.to_string().as_bytes())?;
        drop(stdin);
        let ended = child.wait_with_output()?;
        let said = match ended.stdout.as_slice() {
            [] => Value::Null,
            bytes => serde_json::from_slice(bytes)
                .with_context(|| String::from_utf8_lossy(bytes).into_owned())?,
        };
        let code = match ended.status.success() {
            true => 0,
            false => said["code"].as_u64().with_context(|| {
                format!("{}: {said} {}", ended.status, String::from_utf8_lossy(&ended.stderr))
            })?,
        };
        Ok(Answer { code, said })
    }

    /// Runs a container in a sandbox to its end; `words` are the client's, one call of it after another,
    /// whatever becomes of each.
    ///
    /// # Errors
    /// When runc can't be started, or the container doesn't end in time.
    pub fn run(&self, sandbox: &Sandbox, calls: &[&[&str]]) -> Result<Finished> {
        let number = next_number();
        let id = format!("{:032x}{number:032x}", u64::from(std::process::id()) << 32);
        let calls = calls.iter().map(|words| format!("{CLIENT} {} 2>&1", words.join(" ")));
        let script = calls.collect::<Vec<_>>().join("; ");
        let bundle = self.dir.path().join(&id);
        fs::create_dir(&bundle)?;
        let config = self.config(sandbox, &id, &script);
        fs::write(bundle.join("config.json"), config.to_string())?;
        let mut runc = self.world.command("runc");
        runc.arg("--root").arg(self.dir.path().join("runc"));
        runc.arg("run").arg("--bundle").arg(&bundle).arg(&id);
        let finished = self.world.output(&mut runc, LIMIT);
        fs::remove_dir_all(&bundle)?;
        finished
    }

    /// A bundle's configuration, as containerd would write it, as far as it matters here.
    fn config(&self, sandbox: &Sandbox, id: &str, script: &str) -> Value {
        let mut namespaces = vec![
            json!({"type": "pid"}),
            json!({"type": "ipc"}),
            json!({"type": "uts"}),
            json!({"type": "mount"}),
        ];
        // Without one, runc's own is the container's, which is the node's.
        if let Some(namespace) = &sandbox.namespace {
            namespaces.push(json!({"type": "network", "path": namespace.path()}));
        }
        let capabilities =
            json!(["CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETUID", "CAP_SETGID"]);
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": ["/bin/sh", "-c", script],
                "env": ["PATH=/usr/bin:/bin"],
                "cwd": "/",
                "capabilities": {
                    "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
                },
                "noNewPrivileges": true,
            },
            "root": {"path": self.dir.path().join("rootfs"), "readonly": true},
            "hostname": sandbox.name(),
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            ],
            "linux": {
                "cgroupsPath": format!("/{}/kubepods/burstable/pod{}/{id}", self.cgroup_root, sandbox.uid),
                "namespaces": namespaces,
            },
        })
    }
}

impl Sandbox {
    fn new(number: u32, namespace: Option<Namespace>, address: Ipv4Addr, of: &str) -> Self {
        // As long as containerd's, and unlike every other's.
        let id = format!("{:032x}{number:032x}", std::process::id());
        let uid = format!("0f0d9b4e-6c1f-4f7c-9a55-{number:012x}");
        Self { namespace, address, id, uid, of: of.to_owned() }
    }

    /// The pod's name.
    #[must_use]
    pub fn name(&self) -> String {
        format!("pod-{}", self.uid.rsplit('-').next().unwrap_or_default())
    }

    /// What the API server says of it.
    #[must_use]
    pub fn object(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": self.name(), "namespace": self.of, "uid": self.uid,
                "labels": {}, "annotations": {}},
            "spec": {"nodeName": "n", "containers": [{"name": "app"}],
                "hostNetwork": self.namespace.is_none()},
            "status": {"phase": "Pending", "qosClass": "Burstable"},
        })
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        let v2 = cgroup2_mount().unwrap_or_default();
        // runc made the same path below each controller.
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            if hierarchy.path() != v2 {
                remove(&hierarchy.path().join(&self.cgroup_root));
            }
        }
        let root = v2.join(&self.cgroup_root);
        match self.is_ours {
            true => remove(&root),
            false => {
                let pods = fs::read_dir(root.join("kubepods/burstable")).into_iter().flatten();
                let pods = pods.flatten().map(|entry| entry.path());
                pods.filter(|path| path.is_dir()).for_each(|pod| remove(&pod));
            }
        }
    }
}

/// Removes a cgroup with those in it; nothing runs there any more.
fn remove(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    if cgroup.is_dir()
        && let Err(error) = fs::remove_dir(cgroup)
    {
        eprintln!("cannot remove the cgroup {}: {error}", cgroup.display());
    }
}
