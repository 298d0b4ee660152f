//! Cutting files into documents, and remembering them: the same as reading everything anew.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use super::malformed::documents::documents;
use super::*;
use crate::decide::host::HostName;
use crate::decide::{self, Flow};
use crate::origin::OriginalDst;
use crate::policy::node::{Node, Value, parse};
use crate::policy::parts::{Piece, cut};
use crate::sniff::{ClientHello, Hello};

fn piece(line: usize, text: &str) -> Piece<'_> {
    Piece { text, line }
}

#[test]
fn files_are_cut_at_markers_only() {
    assert_eq!(cut(""), [piece(0, "")]);
    assert_eq!(cut("a: 1\n---\nb: 2\n"), [piece(0, "a: 1\n"), piece(1, "---\nb: 2\n")]);
    assert_eq!(cut("--- # x\r\na: 1\r\n---"), [piece(0, "--- # x\r\na: 1\r\n"), piece(2, "---")]);
    for whole in [
        "a: 1\n----\nb: 2\n",
        "a: |\n  ---\n  x\n",
        "a: &x 1\n---\nb: 2\n",
        "%YAML 1.2\n---\na: 1\n---\nb: 1\n",
        "a: 1\n...\n---\nb: 2\n",
        "a: 1\rb: 2\n---\nc: 3\n",
    ] {
        assert_eq!(cut(whole), [piece(0, whole)]);
    }
}

/// Everything of a tree, with places counted from a line further down.
fn show(node: &Node, line: usize, out: &mut String) {
    use std::fmt::Write as _;
    let _ = write!(out, "@{}:{} ", node.at.line + line, node.at.column);
    match &node.value {
        Value::List(items) => items.iter().for_each(|item| show(item, line, out)),
        Value::Map(entries) => {
            for (key, value) in entries {
                let _ = write!(out, "{}@{}:{} ", key.name, key.at.line + line, key.at.column);
                show(value, line, out);
            }
        }
        other => {
            let _ = write!(out, "{other:?} ");
        }
    }
}

/// Where every piece parses, the pieces say what the whole says.
#[test]
fn pieces_read_as_the_whole_does() {
    let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scenarios/istio");
    let mut texts: Vec<String> = documents(&scenarios)
        .into_iter()
        .filter_map(|document| String::from_utf8(document.bytes).ok())
        .collect();
    // Pairs: what one leaves open would reach into the other.
    let pairs = texts.windows(2).map(|pair| format!("{}\n---\n{}", pair[0], pair[1]));
    texts.extend(pairs.collect::<Vec<_>>());
    texts.extend(
        ["|\n  x\n---\na", ">\n  a\n---\nb", "'a\n---\nb'", "[a,\n---\nb]", "a: b\n---\n"]
            .map(str::to_owned),
    );
    let mut cut_up = 0;
    for text in &texts {
        let pieces = cut(text);
        if pieces.len() == 1 {
            continue;
        }
        let parsed: Result<Vec<_>, _> =
            pieces.iter().map(|piece| parse(piece.text).map(|nodes| (piece.line, nodes))).collect();
        let Ok(parsed) = parsed else { continue };
        cut_up += 1;
        let whole = parse(text).unwrap_or_else(|bad| panic!("{}: {text}", bad.message));
        let (mut one, mut other) = (String::new(), String::new());
        whole.iter().for_each(|node| show(node, 0, &mut one));
        for (line, nodes) in &parsed {
            nodes.iter().for_each(|node| show(node, *line, &mut other));
        }
        assert_eq!(one, other, "{text}");
    }
    assert!(cut_up > 300, "{cut_up} of {}", texts.len());
}

/// A document of the edited files; some are rejected, some warn, some are no ServiceEntry.
fn document(number: u64, version: u64) -> String {
    let host = match version % 7 {
        0 => "\"*\"".to_owned(),
        1 => format!("h{}.test", number % 5),
        _ => format!("h{number}-{version}.test"),
    };
    let (port, protocol) = [(443, "TLS"), (80, "HTTP"), (5432, "TCP"), (443, "GRPC")]
        [usize::try_from(version % 4).unwrap_or(0)];
    let kind = if number % 6 == 5 { "VirtualService" } else { "ServiceEntry" };
    let spec = match kind {
        "VirtualService" => {
            format!("hosts: [{host}]\n  http: [{{route: [{{destination: {{host: {host}}}}}]}}]")
        }
        _ => format!(
            "hosts: [{host}]\n  ports: [{{number: {port}, name: p, protocol: {protocol}}}]\n  resolution: DNS"
        ),
    };
    format!(
        "---\n# {version}\napiVersion: networking.istio.io/v1\nkind: {kind}\n\
         metadata: {{name: n{number}, namespace: default}}\nspec:\n  {spec}\n"
    )
}

/// Everything that can be told of a loaded set.
fn told(loaded: &Result<Loaded, LoadErrors>) -> String {
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(errors) => return format!("{:?}", errors.0),
    };
    let mut text = format!("{:?} {:?} {}", loaded.warnings, loaded.rejected, loaded.summary);
    for number in 0..16 {
        for version in 0..24 {
            for name in [format!("h{number}-{version}.test"), format!("h{}.test", number % 5)] {
                for port in [80, 443] {
                    let dst = OriginalDst::new(([198, 51, 100, 7], port).into());
                    let flow = Flow { dst, namespace: "default" };
                    let sni = HostName::parse(&name).ok();
                    let hello = Hello::Tls(ClientHello { sni, ..ClientHello::default() });
                    let decision = decide::by_hello(&loaded.snapshot.policy, &flow, &hello);
                    text.push_str(&format!("{decision:?}\n"));
                }
            }
        }
    }
    text
}

/// Random edits: added, removed, changed and moved documents, in two files and both profiles.
#[test]
fn remembering_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |limit: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % limit
    };
    let mut held: BTreeMap<u64, (u64, bool)> = BTreeMap::new();
    let mut inventory = Inventory::default();
    let (mut accepted, mut reused) = (0, 0);
    for step in 0..40 {
        for _ in 0..=random(3) {
            let number = random(16);
            match random(4) {
                0 => drop(held.remove(&number)),
                _ => drop(held.insert(number, (random(24), random(2) == 0))),
            }
        }
        for (file, first) in [("a.yaml", true), ("b.yaml", false)] {
            let mut text = "# kept\n".repeat(usize::try_from(random(4)).unwrap_or(0) + 1);
            let documents = held.iter().filter(|(_, (_, here))| *here == first);
            documents.for_each(|(number, (version, _))| text += &document(*number, *version));
            if random(12) == 0 {
                text += "---\nkind: [\n";
            }
            fs::write(dir.path().join(file), text).expect("written");
        }
        let profile = if step % 9 < 6 { Enforcement::Strict } else { Enforcement::Istio };
        let sources = Sources {
            files: vec![dir.path().to_owned()],
            outbound: Some(Outbound::RegistryOnly),
            enforcement: Some(profile),
            ..Sources::default()
        };
        let caller = Caller::new("default");
        let forgetful = inventory.clone().with_known(Default::default());
        let fresh = load_over(&sources, &caller, &forgetful);
        let again = load_over(&sources, &caller, &inventory);
        assert_eq!(told(&fresh), told(&again), "step {step}");
        if let (Ok(fresh), Ok(again)) = (fresh, again) {
            assert_eq!(
                fresh.inventory.changes(&again.inventory).to_string(),
                "no resource changed",
                "step {step}"
            );
            let (before, after) = (inventory.known(), again.inventory.known());
            let same = |(text, part): (&Arc<str>, &Arc<_>)| {
                before.get(text).is_some_and(|old| Arc::ptr_eq(old, part))
            };
            accepted += 1;
            reused += after.iter().filter(|pair| same(*pair)).count();
            inventory = again.inventory;
        }
    }
    assert!(accepted > 15 && reused > 40, "{accepted} accepted, {reused} documents reused");
}
