//! DEL and GC.

use std::collections::BTreeSet;

use super::{Call, Code, Failure, Node, Record, Records};

/// Forgets a pod, as far as it can be told which it was; gives what could not be done, for people.
pub(super) fn del(call: &Call, node: &impl Node, records: &Records) -> Vec<String> {
    let Ok(attachment) = call.attachment() else { return Vec::new() };
    let mut notes = Vec::new();
    let known = records.get(attachment).map(|record| record.cookie);
    let cookie = known.or_else(|| node.cookie(call.netns_if_any()?).ok());
    if let Err(error) = records.remove(&attachment.container, &attachment.interface) {
        notes.push(format!("the record of container {} stays: {error}", attachment.container));
    }
    if let Some(cookie) = cookie
        && let Err(why) = forget(cookie, node, records)
    {
        notes
            .push(format!("container {} stays in the kernel's table: {why}", attachment.container));
    }
    notes
}

/// Forgets what the runtime does not count among the network's attachments.
pub(super) fn gc(call: &Call, node: &impl Node, records: &Records) -> Result<(), Failure> {
    let valid = call.network.valid.as_ref().ok_or_else(|| {
        Failure::new(
            Code::Configuration,
            "no cni.dev/valid-attachments",
            "GC says what is attached",
        )
    })?;
    let valid: BTreeSet<_> = valid.iter().map(|one| (&one.container, &one.interface)).collect();
    let mut failed = Vec::new();
    for Record { network, container, interface, cookie, .. } in records.all() {
        if network != call.network.name || valid.contains(&(&container, &interface)) {
            continue;
        }
        let removed = records.remove(&container, &interface).map_err(|error| error.to_string());
        if let Err(why) = removed.and_then(|()| forget(cookie, node, records)) {
            failed.push(format!("container {container}: {why}"));
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(Code::Io, "some attachments stay", failed.join("; "))),
    }
}

/// Takes a namespace out of the table, unless another attachment is of the same one.
fn forget(cookie: u64, node: &impl Node, records: &Records) -> Result<(), String> {
    match records.all().iter().any(|record| record.cookie == cookie) {
        true => Ok(()),
        false => node.remove(cookie),
    }
}
