//! The CNI plugin: the container runtime calls it for each pod, after the pod's network is made and before
//! anything runs in it, so that a pod's first packet is judged or let pass as it is to be (docs/cni.md).
//!
//! ```text
//! call      environment and standard input to a call
//! settings  what the configuration on disk says of a pod's namespace; needs no daemon
//! attach    ADD and CHECK: exempt, or covered by the agent, or "try again later"
//! detach    DEL and GC
//! records   what was attached, for DEL without a namespace and for an agent that starts
//! node      the kernel's table, the hooks, the agent
//! install   the binary and the configuration in their places, by the agent
//! ```

mod attach;
mod call;
mod detach;
mod failure;
mod install;
mod node;
mod records;
mod settings;

use std::ffi::OsStr;
use std::path::Path;

use serde_json::{Value, json};

pub use call::{Attachment, Call, Command, Network};
pub use failure::{Code, Failure};
pub use install::{InstallError, Installer};
pub use node::{Machine, Node};
pub use records::{Fate, Record, Records};
pub use settings::Settings;

use crate::kernel::Standing;

/// The plugin's type in configurations, and so the name of its file: called by it, the binary is the
/// plugin.
pub const TYPE: &str = "interceptor-cni";

/// Whether the program was started as the plugin; `name` is its own, as the caller gave it.
pub fn is_called_by(name: &OsStr) -> bool {
    Path::new(name).file_name() == Some(OsStr::new(TYPE))
}

/// The cookies of the namespaces that instance `name`'s plugin has exempted since the machine was booted.
pub fn exempt(name: &str) -> Vec<u64> {
    let Ok(boot) = Records::boot() else { return Vec::new() };
    let all = Records::of(name, boot).all().into_iter();
    all.filter(|record| record.fate == Fate::Exempt).map(|record| record.cookie).collect()
}

/// What the runtime is told.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    /// For standard output: the result, or the error. Nothing where there is nothing to say.
    pub said: Option<Value>,
    /// Whether it was done.
    pub done: bool,
    /// For standard error: what went wrong that the runtime need not know.
    pub notes: Vec<String>,
}

/// Does what the runtime asks by `variable`, its environment, and `input`, what it wrote to us. `place`
/// gives the node and the records of an instance.
pub fn act<N: Node>(
    variable: impl Fn(&str) -> Option<String>,
    input: &[u8],
    place: impl FnOnce(&Settings) -> (N, Records),
) -> Outcome {
    let mut notes = Vec::new();
    let command = Command::read(variable("CNI_COMMAND").as_deref());
    let done = command.clone().and_then(|command| {
        if command == Command::Version {
            return Ok(Some(call::versions(input)));
        }
        let call = Call::read(command, variable, input)?;
        let (node, records) = place(&call.network.settings);
        match command {
            Command::Add => attach::add(&call, &node, &records).map(Some),
            Command::Check => attach::check(&call, &node, &records).map(|()| None),
            Command::Del => {
                notes = detach::del(&call, &node, &records);
                Ok(None)
            }
            Command::Gc => detach::gc(&call, &node, &records).map(|()| None),
            Command::Status => status(&node).map(|()| None),
            Command::Version => Ok(None),
        }
    });
    match done {
        Ok(said) => Outcome { said, done: true, notes },
        // A pod that cannot be deleted is worse than an entry that nobody asks for any more.
        Err(failure) if command == Ok(Command::Del) => {
            notes.push(failure.to_string());
            Outcome { said: None, done: true, notes }
        }
        Err(failure) => {
            let version = call::version(input);
            let Failure { code, message, details } = failure;
            let said = json!({
                "cniVersion": version, "code": code.number(), "msg": message, "details": details,
            });
            Outcome { said: Some(said), done: false, notes }
        }
    }
}

/// Whether pods can be attached. A runtime that hears "no" starts no pod at all on the node, exempt ones
/// included, so a missing agent is no reason: exempt pods do not need it, and ADD tells the others.
fn status(node: &impl Node) -> Result<(), Failure> {
    let unready = |why: String| Failure::new(Code::NotReady, "no pod can be attached", why);
    match (node.has_table().map_err(unready)?, node.hooks().map_err(unready)?) {
        (_, Standing::None) | (true, Standing::These) => Ok(()),
        (_, Standing::Others | Standing::These) => Err(unready(
            "the hooks at the pods' cgroup read a table that is not pinned where this plugin looks: is \
             it of the agent's version, and does its `instance` have the agent's name?"
                .to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests;
