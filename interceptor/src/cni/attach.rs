//! ADD and CHECK.

use std::time::Duration;

use interceptor_common::Namespace;
use serde_json::Value;

use super::call::{Attachment, Pod};
use super::settings::Rule;
use super::{Call, Code, Failure, Fate, Node, Record, Records};
use crate::admin::{Covering, Sandbox};
use crate::kernel::Standing;

/// How long one answer of the agent may take.
const ANSWER: Duration = Duration::from_secs(2);

/// How long it rests before it is asked again.
const REST: Duration = Duration::from_millis(100);

/// Attaches a pod: what the plugin before us made is the result, once the pod's namespace is exempt or
/// covered. Nothing has run in the pod until then.
pub(super) fn add(call: &Call, node: &impl Node, records: &Records) -> Result<Value, Failure> {
    let Attachment { container, interface } = call.attachment()?;
    let (pod, netns, result) = (call.pod()?, call.netns()?, call.previous()?);
    let cookie = node.cookie(netns).map_err(|why| {
        Failure::new(Code::Environment, format!("network namespace {}", netns.display()), why)
    })?;
    let Pod { namespace, name, uid } = pod;
    let sandbox = Sandbox { netns: netns.to_owned(), cookie, namespace, name, uid };
    let record = |fate| {
        let Sandbox { netns, cookie, namespace, name, uid } = sandbox.clone();
        let record = Record {
            network: call.network.name.clone(),
            container: container.clone(),
            interface: interface.clone(),
            cookie,
            netns,
            namespace,
            name,
            uid,
            fate,
        };
        records.write(&record).map_err(|error| {
            Failure::new(Code::Io, format!("the record of container {container}"), error)
        })
    };
    let attach = || {
        let rule = call.network.settings.rule(&sandbox.namespace);
        let fate = match rule {
            Rule::Exempt => Fate::Exempt,
            Rule::ExemptWithoutAgent | Rule::Ask => {
                record(Fate::Covered)?;
                announce(node, cookie).map_err(|why| later(&sandbox, why))?;
                ask(&sandbox, rule, call.network.settings.wait(), node)?
            }
        };
        if fate == Fate::Exempt {
            // Before the table is looked for: an agent makes the table, then reads the records, then
            // attaches. So either we see its table or it sees our record.
            record(fate)?;
            exempt(node, cookie).map_err(|why| later(&sandbox, why))?;
        }
        Ok(result)
    };
    attach().inspect_err(|_| {
        // It does not start, so there is nothing to know of it. DEL would see to what fails here.
        let _ = records.remove(container, interface);
        if node.get(cookie).is_ok_and(|entry| entry.is_some_and(|entry| entry == unserved())) {
            let _ = node.remove(cookie);
        }
    })
}

/// Known, and not served yet: all is refused.
fn unserved() -> Namespace {
    Namespace { kind: Namespace::COVERED, ..Namespace::default() }
}

fn later(sandbox: &Sandbox, why: String) -> Failure {
    let Sandbox { namespace, name, .. } = sandbox;
    Failure::new(Code::TryAgainLater, format!("pod {namespace}/{name} cannot start yet"), why)
}

/// Tells the kernel that the namespace is a pod's, unless it knows.
fn announce(node: &impl Node, cookie: u64) -> Result<(), String> {
    match node.get(cookie)? {
        Some(_) => Ok(()),
        None => node.put(cookie, unserved()).map(drop),
    }
}

/// Asks the agent until it says what is to be, and that is so, or time is up.
fn ask(sandbox: &Sandbox, rule: Rule, wait: Duration, node: &impl Node) -> Result<Fate, Failure> {
    loop {
        let left = wait.saturating_sub(node.elapsed());
        let why = match node.ask(sandbox, ANSWER.min(left.max(REST))) {
            Ok(Covering::Exempt) => return Ok(Fate::Exempt),
            Ok(Covering::Covered) => match is_covered(node, sandbox.cookie) {
                Ok(()) => return Ok(Fate::Covered),
                Err(why) => why,
            },
            Ok(Covering::NotYet(why)) => why,
            Err(_) if rule == Rule::ExemptWithoutAgent => return Ok(Fate::Exempt),
            Err(why) => why,
        };
        if node.elapsed() >= wait {
            return Err(later(sandbox, why));
        }
        node.pause(REST);
    }
}

/// Whether the kernel agrees that what leaves the namespace is judged and served.
fn is_covered(node: &impl Node, cookie: u64) -> Result<(), String> {
    let entry = node.get(cookie)?;
    if !entry.is_some_and(|entry| !entry.is_exempt() && !entry.is_unserved()) {
        return Err("the agent says that it is covered, and the kernel's table does not".to_owned());
    }
    match node.hooks()? {
        Standing::These => Ok(()),
        Standing::None | Standing::Others => {
            Err("the agent's hooks are not in effect at the pods' cgroup".to_owned())
        }
    }
}

/// Lets what leaves the namespace pass. Without a table that is so where no hook is, and nothing needs to
/// be written; an agent that comes later reads the records. Where hooks hold pods and their table cannot
/// be found, a daemon lives that will pin it again, or another version's did not end in order.
fn exempt(node: &impl Node, cookie: u64) -> Result<(), String> {
    let entry = Namespace { kind: Namespace::EXEMPT, ..Namespace::default() };
    if node.put(cookie, entry)? {
        return Ok(());
    }
    match node.hooks()? {
        Standing::None => Ok(()),
        Standing::These | Standing::Others => Err(
            "it is exempt, but hooks hold all pods and their table is not pinned; a running agent pins it \
             again within seconds; hooks without an agent go with `interceptor detach`"
                .to_owned(),
        ),
    }
}

/// Whether a pod is still as ADD left it. Labels may have changed since, so either fate will do.
pub(super) fn check(call: &Call, node: &impl Node, records: &Records) -> Result<(), Failure> {
    call.previous()?;
    let attachment = call.attachment()?;
    let unknown = |why: String| {
        Failure::new(Code::UnknownContainer, format!("container {}", attachment.container), why)
    };
    let record =
        records.get(attachment).ok_or_else(|| unknown("ADD did not attach it".to_owned()))?;
    if node.cookie(call.netns()?).map_err(unknown)? != record.cookie {
        return Err(unknown(
            "it has another network namespace than it was attached with".to_owned(),
        ));
    }
    let pod = format!("pod {}/{}", record.namespace, record.name);
    let unseen = |why: String| Failure::new(Code::Io, pod.clone(), why);
    let entry = node.get(record.cookie).map_err(unseen)?;
    let hooks = node.hooks().map_err(unseen)?;
    match entry {
        Some(entry) if entry.is_exempt() => Ok(()),
        Some(entry) if entry.is_unserved() => Err(Failure::new(
            Code::Held,
            pod,
            "the agent does not serve it: what leaves it is refused",
        )),
        Some(_) if hooks == Standing::These => Ok(()),
        None if hooks == Standing::None && record.fate == Fate::Exempt => Ok(()),
        None if hooks != Standing::None => Err(Failure::new(
            Code::Held,
            pod,
            "the kernel knows nothing of it: what leaves it is refused",
        )),
        _ => Err(Failure::new(
            Code::NotCovered,
            pod,
            "no hook of the agent's is in effect: what leaves it is not judged",
        )),
    }
}
