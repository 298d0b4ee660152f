//! A node of a cluster: the world's workload namespace, with pods behind it at the paths that kubelet
//! gives them, and the product's agent.
//!
//! ```text
//!  pod N                          …-workload (the node)               …-net
//!  10.80.N.2 eth0 ──veth── 10.80.N.1 podN  10.77.0.2 ──veth── 10.77.0.1 (see world.rs)
//! ```

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::cgroup::Cgroup;
use crate::cluster::Cluster;
use crate::netns::{Namespace, next_number};
use crate::pod::forward;
use crate::product::binary;
use crate::world::{Finished, World, stop};

/// How long the agent may take for what it was told.
pub const SOON: Duration = Duration::from_secs(15);

/// The node. Dropping it removes everything, what an agent left attached too.
#[derive(Debug)]
pub struct Node<'w> {
    world: &'w World,
    binary: PathBuf,
    agent: Option<Child>,
    name: String,
    /// Below the mount of cgroup v2: what the agent is started in, then what holds pods, then all pods,
    /// then kubelet's `--cgroup-root`, which holds the others.
    parents: [Cgroup; 4],
    root: String,
    flags: Vec<String>,
}

/// A pod: a namespace, a link, a cgroup and a process that holds them. Dropping it removes it.
#[derive(Debug)]
pub struct Pod<'w> {
    world: &'w World,
    // In this order: no process holds the namespace, or is in the cgroup, when they go.
    first: Child,
    container: Cgroup,
    /// `None`: the node's.
    namespace: Option<Namespace>,
    _pod: Cgroup,
    /// Empty where there is none.
    link: String,
    object: Value,
}

impl<'w> Node<'w> {
    /// Makes the node, without an agent. `flags` are the agent's.
    ///
    /// # Errors
    /// When a cgroup or file can't be made.
    pub fn new(world: &'w World, cluster: &Cluster, flags: &[&str]) -> Result<Self> {
        Self::of(world, &binary(), cluster, flags)
    }

    /// The same, with another program than [`binary`].
    ///
    /// # Errors
    /// As [`Node::new`].
    pub fn of(world: &'w World, binary: &Path, cluster: &Cluster, flags: &[&str]) -> Result<Self> {
        Self::with(world, binary, &cluster.kubeconfig(), flags)
    }

    /// The same, with an API server that `kubeconfig` leads to from the world's workload namespace.
    ///
    /// # Errors
    /// As [`Node::new`].
    pub fn with(world: &'w World, binary: &Path, kubeconfig: &str, flags: &[&str]) -> Result<Self> {
        forward(&world.workload)?;
        world.internet.ip(&["route", "replace", "10.80.0.0/16", "via", "10.77.0.2"])?;
        world.file("kubeconfig", kubeconfig)?;
        // A node that was in this world before has no part in this one.
        for left in ["state", "secrets"] {
            let _ = fs::remove_dir_all(world.dir().join(left));
        }
        for left in ["agent.err", "agent.log"] {
            let _ = fs::remove_file(world.dir().join(left));
        }
        let top = Cgroup::create("node")?;
        let root = top.path().file_name().context("a name")?.to_string_lossy().into_owned();
        let system = top.child("system")?;
        let pods = top.child("kubepods")?;
        let burstable = pods.child("burstable")?;
        let name = format!("ix-{}-{}", std::process::id(), next_number());
        let flags = flags.iter().map(ToString::to_string).collect();
        // Inner ones go first.
        let (binary, parents) = (binary.to_owned(), [system, burstable, pods, top]);
        Ok(Self { world, binary, agent: None, name, parents, root, flags })
    }

    /// Starts the agent.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(&mut self) -> Result<()> {
        self.agent = Some(self.spawn(&[])?);
        Ok(())
    }

    /// Starts another agent, which takes the place of the one that runs; gives that one.
    ///
    /// # Errors
    /// When none runs, or it can't be started.
    pub fn succeed(&mut self) -> Result<Child> {
        let new = self.spawn(&["--take-over"])?;
        self.agent.replace(new).context("no agent runs")
    }

    fn spawn(&self, more: &[&str]) -> Result<Child> {
        let dir = self.world.dir();
        let log = fs::File::options().create(true).append(true).open(self.said_in())?;
        let [system, ..] = &self.parents;
        let mut command = self.world.command("sh");
        system
            .command(&mut command, &[&self.binary.to_string_lossy()])
            .env("KUBECONFIG", dir.join("kubeconfig"))
            .args(["agent", "--node", "n", "--name", &self.name, "--cgroup-root"])
            .arg(format!("/{}", self.root))
            .arg("--state-dir")
            .arg(dir.join("state"))
            .arg("--secrets-dir")
            .arg(dir.join("secrets"))
            .arg("--access-log")
            .arg(dir.join("agent.log"))
            .args(&self.flags)
            .args(more);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.world.spawn(&mut command)
    }

    /// The agent's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// kubelet's `--cgroup-root`, without the slash.
    #[must_use]
    pub fn cgroup_root(&self) -> &str {
        &self.root
    }

    /// The cgroup to which the agent moves itself, made if it is not there yet: beside the node's, since the
    /// machine's top is not the node's.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn agents(&self) -> Result<PathBuf> {
        let top = self.top().parent().context("the top")?;
        let agents = top.join(format!("interceptor-{}", self.name));
        fs::create_dir_all(&agents)?;
        Ok(agents)
    }

    /// The cgroup in which the agent is started, as is everything else on the node.
    #[must_use]
    pub fn top(&self) -> &Path {
        let [.., top] = &self.parents;
        top.path()
    }

    /// The cgroup of the pods of one class, which is in that of all pods.
    #[must_use]
    pub fn burstable(&self) -> &Path {
        let [_, burstable, ..] = &self.parents;
        burstable.path()
    }

    /// Kills the agent.
    ///
    /// # Errors
    /// When none runs.
    pub fn kill(&mut self) -> Result<()> {
        let mut agent = self.agent.take().context("no agent runs")?;
        agent.kill()?;
        agent.wait()?;
        Ok(())
    }

    /// Stops the agent by SIGTERM.
    ///
    /// # Errors
    /// When none runs.
    pub fn stop(&mut self) -> Result<()> {
        stop(&mut self.agent.take().context("no agent runs")?)?;
        Ok(())
    }

    /// The agent's process.
    ///
    /// # Errors
    /// When none runs.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.agent.as_ref().context("no agent runs")?.id())
    }

    fn said_in(&self) -> PathBuf {
        self.world.dir().join("agent.err")
    }

    /// What the agents said so far.
    #[must_use]
    pub fn said(&self) -> String {
        fs::read_to_string(self.said_in()).unwrap_or_default()
    }

    /// The agent's access log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.world.dir().join("agent.log")).unwrap_or_default()
    }

    /// A verb of the product for this agent (`status`, `detach`), to its end.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn verb(&self, arguments: &[&str]) -> Result<Finished> {
        let mut command = self.world.command(&self.binary);
        self.world.output(command.args(arguments).args(["--name", &self.name]), SOON)
    }

    /// Whether the agent holds a network namespace open.
    ///
    /// # Errors
    /// When no agent runs.
    pub fn holds(&self, netns: &Namespace) -> Result<bool> {
        let handle = format!("net:[{}]", fs::metadata(netns.path())?.ino());
        let open = fs::read_dir(format!("/proc/{}/fd", self.pid()?))?.flatten();
        Ok(open.filter_map(|one| fs::read_link(one.path()).ok()).any(|to| to.ends_with(&handle)))
    }

    /// Waits until the agent covers a pod with this name.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn until_covered(&self, pod: &str, covered: bool) -> Result<()> {
        let deadline = Instant::now() + SOON;
        loop {
            let status = self.verb(&["status", "-o", "json"])?;
            let report: Value = serde_json::from_str(&status.stdout).unwrap_or_default();
            let labels = report["namespaces"].as_array().into_iter().flatten();
            let is_covered =
                labels.filter_map(|one| one["label"].as_str()).any(|label| label == pod);
            if status.code == 0 && is_covered == covered {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{pod}: {status:?}\n{}", self.said());
            sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the agent has attached, and done what it can for the pods that were there before it.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn until_attached(&self) -> Result<()> {
        let deadline = Instant::now() + SOON;
        while !self.said().contains("interceptor: covering ") {
            ensure!(Instant::now() < deadline, "it never attached: {}", self.said());
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Makes a pod's sandbox and its first process, which does nothing. The API server is told by
    /// [`Pod::object`].
    ///
    /// # Errors
    /// When a part of it can't be made.
    pub fn pod(&self, number: u8, namespace: &str, name: &str) -> Result<Pod<'w>> {
        let network = format!("10.80.{number}");
        self.pod_at(number, &network, namespace, name)
    }

    /// The same, in the /24 that is given.
    ///
    /// # Errors
    /// As [`Node::pod`].
    pub fn pod_at(
        &self,
        number: u8,
        network: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Pod<'w>> {
        let sandbox = Namespace::create(next_number(), "pod")?;
        let link = format!("pod{number}");
        let node = &self.world.workload;
        node.ip(&[
            "link",
            "add",
            &link,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            sandbox.name(),
        ])?;
        node.ip(&["addr", "add", &format!("{network}.1/24"), "dev", &link])?;
        node.ip(&["link", "set", &link, "up"])?;
        sandbox.ip(&["addr", "add", &format!("{network}.2/24"), "dev", "eth0"])?;
        sandbox.ip(&["link", "set", "eth0", "up"])?;
        sandbox.ip(&["route", "add", "default", "via", &format!("{network}.1")])?;
        self.make(number, [namespace, name], Some(sandbox), link)
    }

    /// Makes a pod with `hostNetwork`: a cgroup, and a process in the node's network namespace.
    ///
    /// # Errors
    /// As [`Node::pod`].
    pub fn host_pod(&self, number: u8, namespace: &str, name: &str) -> Result<Pod<'w>> {
        let mut pod = self.make(number, [namespace, name], None, String::new())?;
        pod.object["spec"]["hostNetwork"] = json!(true);
        Ok(pod)
    }

    fn make(
        &self,
        number: u8,
        [namespace, name]: [&str; 2],
        sandbox: Option<Namespace>,
        link: String,
    ) -> Result<Pod<'w>> {
        let uid = format!("0f0d9b4e-6c1f-4f7c-9a55-{:012x}", u32::from(number) + 1);
        let [_, burstable, ..] = &self.parents;
        let pod = burstable.child(&format!("pod{uid}"))?;
        let container = pod.child(&format!("{:064x}", u32::from(number) + 1))?;
        let mut shell = self.world.command("sh");
        let first = inside(sandbox.as_ref(), &["sleep", "86400"]);
        let first = self.world.spawn(container.command(&mut shell, &first).stdin(Stdio::null()))?;
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "uid": uid,
                "labels": {"app": name}, "annotations": {}},
            "spec": {"nodeName": "n", "containers": [{"name": "app"}]},
            "status": {"phase": "Running", "qosClass": "Burstable"},
        });
        Ok(Pod { world: self.world, first, container, namespace: sandbox, _pod: pod, link, object })
    }
}

/// A program in a namespace; `None`: where it is started.
fn inside<'p>(namespace: Option<&'p Namespace>, program: &[&'p str]) -> Vec<&'p str> {
    let enter = namespace.map(|namespace| ["ip", "netns", "exec", namespace.name()]);
    enter.iter().flatten().chain(program).copied().collect()
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        match self.verb(&["detach"]) {
            Ok(done) if done.code == 0 => {}
            other => eprintln!("cannot detach {}: {other:?}", self.name),
        }
        if std::thread::panicking() {
            eprintln!("the agent said: {}", self.said());
        }
    }
}

impl Pod<'_> {
    /// What the API server says of it, to be changed and put there.
    pub fn object(&mut self) -> &mut Value {
        &mut self.object
    }

    /// Gives it a label.
    pub fn label(&mut self, key: &str, value: &str) {
        self.object["metadata"]["labels"][key] = json!(value);
    }

    /// Waits until its first process is in its namespace.
    ///
    /// # Errors
    /// When it does not come there in time.
    pub fn until_up(&self) -> Result<()> {
        let own = fs::metadata(self.netns()?.path())?.ino();
        let of_first = format!("/proc/{}/ns/net", self.first.id());
        let deadline = Instant::now() + SOON;
        while fs::metadata(&of_first)?.ino() != own {
            ensure!(Instant::now() < deadline, "no process in {}", self.netns()?.name());
            sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Its network namespace.
    ///
    /// # Errors
    /// It has none of its own.
    pub fn netns(&self) -> Result<&Namespace> {
        self.namespace.as_ref().context("a pod with a network of its own")
    }

    /// A program in a container of the pod, from its first instruction on.
    #[must_use]
    pub fn command(&self, program: &[&str]) -> Command {
        let mut shell = self.world.command("sh");
        self.container.command(&mut shell, &inside(self.namespace.as_ref(), program));
        shell
    }

    /// Runs a program in the pod to its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn output(&self, program: &[&str]) -> Result<Finished> {
        self.world.output(&mut self.command(program), SOON)
    }

    /// Says `hello` to an echo server: whether it came back.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn echoes(&self, to: std::net::SocketAddr) -> Result<bool> {
        let script =
            "exec 3<>/dev/tcp/$0/$1 || exit 1; echo hello >&3; read -t 2 x <&3; [ \"$x\" = hello ]";
        let (ip, port) = (to.ip().to_string(), to.port().to_string());
        Ok(self.output(&["timeout", "4", "bash", "-c", script, &ip, &port])?.code == 0)
    }

    /// Waits until an echo server is reached from it, or is not any more.
    ///
    /// # Errors
    /// When that does not come in time.
    pub fn until_echoes(&self, to: std::net::SocketAddr, reached: bool) -> Result<()> {
        let deadline = Instant::now() + SOON;
        while self.echoes(to)? != reached {
            if Instant::now() > deadline {
                bail!("{to} from {}: never {reached}", self.object["metadata"]["name"]);
            }
            sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// How many sockets there are in it, whoever's.
    ///
    /// # Errors
    /// When it can't be asked.
    pub fn sockets(&self) -> Result<u64> {
        let said = self.output(&["cat", "/proc/self/net/sockstat"])?.stdout;
        let used = said.lines().find_map(|line| line.strip_prefix("sockets: used "));
        Ok(used.with_context(|| said.clone())?.parse()?)
    }

    /// The node's end of its link.
    #[must_use]
    pub fn link(&self) -> &str {
        &self.link
    }

    /// Where its containers' cgroup is.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        self.container.path()
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        let _ = self.first.kill();
        let _ = self.first.wait();
        // The link would go with the namespace, but only some time later.
        if !self.link.is_empty()
            && let Err(error) = self.world.workload.ip(&["link", "del", &self.link])
        {
            eprintln!("{error:#}");
        }
    }
}
