//! A case whose flow enters a gateway: the product is that gateway, at the address that the caller dials.

use std::fs;
use std::net::IpAddr;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::case::{Case, Profile};
use super::files;
use super::pod::Caller;
use super::stage::Ran;
use crate::netns::Namespace;
use crate::world::{DNS, World, stop, text};

/// How long the gateway may take to start.
const START: Duration = Duration::from_secs(15);

/// An address that the workload's namespace has for the time of a case.
struct Address<'w>(&'w Namespace, String);

impl<'w> Address<'w> {
    fn of(namespace: &'w Namespace, ip: IpAddr) -> Result<Self> {
        let address = format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 });
        namespace.ip(&["addr", "add", &address, "dev", "lo"])?;
        Ok(Self(namespace, address))
    }
}

impl Drop for Address<'_> {
    fn drop(&mut self) {
        let _ = self.0.ip(&["addr", "del", &self.1, "dev", "lo"]);
    }
}

/// Has the caller act beside the gateway, uncovered: what leaves then is the gateway's.
///
/// # Errors
/// When the gateway does not start, or a part of it can't be made.
pub(super) fn run(
    world: &World,
    case: &Case,
    profile: Profile,
    resources: &[Value],
    caller: &Caller<'_>,
) -> Result<Ran> {
    let flow = case.flow.as_ref().context("a flow")?;
    let at = caller.at;
    fs::write(at.join("resources.yaml"), files::stream(resources))?;
    fs::write(at.join("mesh.yaml"), files::mesh(case))?;
    let address = Address::of(&world.workload, flow.dst.ip())?;
    let (log, mut stderr) = (at.join("access.log"), tempfile::tempfile()?);
    let mut command = world.command(caller.product);
    command.args(["gateway", "--address", &flow.dst.ip().to_string()]);
    command.args(["--enforcement", profile.word(), "--resolver", &DNS.to_string()]);
    command.arg("-f").arg(at.join("resources.yaml"));
    command.arg("--mesh-config").arg(at.join("mesh.yaml"));
    command.arg("--access-log").arg(&log);
    if let Some(namespace) = &case.workload.namespace {
        command.args(["--namespace", namespace]);
    }
    for (key, value) in &case.workload.labels {
        command.args(["--labels", &format!("{key}={value}")]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr.try_clone()?);
    let mut gateway = world.spawn(&mut command)?;
    let deadline = Instant::now() + START;
    while !text(&mut stderr)?.contains("gateway on") {
        if gateway.try_wait()?.is_some() || Instant::now() > deadline {
            stop(&mut gateway)?;
            bail!("the gateway did not start: {}", text(&mut stderr)?.trim());
        }
        thread::sleep(Duration::from_millis(10));
    }
    let mut call = world.command(caller.program);
    call.arg("caller").arg(at.join("task.json")).arg(at.join("result.json"));
    let finished = world.output(&mut call, caller.limit);
    // In order, so that the log has all its lines.
    stop(&mut gateway)?;
    drop(address);
    let finished = finished?;
    let said = format!("{}{}", finished.stderr, text(&mut stderr)?);
    let log = fs::read_to_string(log).unwrap_or_default();
    Ok(Ran { code: finished.code, log, stderr: said })
}
