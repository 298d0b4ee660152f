//! A case whose caller is a pod: its resources in an API server, the product as the agent of its node.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::case::{Case, Profile};
use super::files;
use super::stage::Ran;
use crate::cluster::Cluster;
use crate::node::Node;
use crate::world::World;

/// The product, and the caller: a program, and the directory that its task is in and its result goes to.
pub(super) struct Caller<'a> {
    pub(super) product: &'a Path,
    pub(super) program: &'a Path,
    pub(super) at: &'a Path,
    pub(super) limit: Duration,
}

/// Has the caller act in a pod that the agent covers, or leaves alone. Its namespace asks to be covered.
///
/// # Errors
/// When a part of it can't be made, or the agent does not get so far.
pub(super) fn run(
    world: &World,
    case: &Case,
    profile: Profile,
    resources: &[Value],
    caller: &Caller<'_>,
) -> Result<Ran> {
    let namespace = case.workload.namespace.as_deref().unwrap_or("default");
    let cluster = Cluster::start(world)?;
    cluster.apply(json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": namespace, "labels": {"egress.interceptor.io/mode": "enforce"}},
    }))?;
    cluster.apply(json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "istio", "namespace": "istio-system"},
        "data": {"mesh": files::mesh(case)},
    }))?;
    for resource in resources {
        cluster.apply(resource.clone())?;
    }
    let mut flags = vec!["--enforcement".to_owned(), profile.word().to_owned()];
    for (key, list) in case.values() {
        flags.extend(["--capture".to_owned(), format!("{key}={list}")]);
    }
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut node = Node::of(world, caller.product, &cluster, &flags)?;
    let mut pod = node.pod(1, namespace, "caller")?;
    pod.object()["metadata"]["labels"] = json!(case.workload.labels);
    pod.object()["metadata"]["annotations"] = json!(case.workload.annotations);
    cluster.apply(pod.object().clone())?;
    pod.until_up()?;
    node.start()?;
    node.until_attached()?;

    let [program, task, result] =
        [caller.program.to_owned(), caller.at.join("task.json"), caller.at.join("result.json")]
            .map(|path| path.to_string_lossy().into_owned());
    // There from the start, so that whoever reads it finds a caller that did nothing.
    fs::write(&result, "")?;
    let finished =
        world.output(&mut pod.command(&[&program, "caller", &task, &result]), caller.limit)?;
    // In order, so that the log has all its lines.
    node.stop()?;
    let said = format!("{}{}", finished.stderr, node.said());
    Ok(Ran { code: finished.code, log: node.log(), stderr: said })
}
