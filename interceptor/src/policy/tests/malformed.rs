//! T-61: what is no policy never takes the place of what is, and never ends the program.

use std::fs;
use std::path::Path;

use super::*;
use crate::decide::host::HostName;
use crate::decide::{self, Action, Flow};
use crate::origin::OriginalDst;
use crate::sniff::{ClientHello, Hello};

#[path = "../../../../tests/src/malformed.rs"]
#[expect(unreachable_pub, reason = "public where the end-to-end tests use it")]
pub(super) mod documents;

const GOOD: &str = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
                    metadata: {name: good, namespace: default}\n\
                    spec: {hosts: [good.test], resolution: DNS, ports: [{number: 443, name: t, protocol: TLS}]}\n";

/// Whether a TLS connection with this name goes anywhere.
fn passes(policy: &Policy, name: &str) -> bool {
    let dst = OriginalDst::new(([198, 51, 100, 200], 443).into());
    let flow = Flow { dst, namespace: "default" };
    let sni = HostName::parse(name).ok();
    let hello = Hello::Tls(ClientHello { sni, ..ClientHello::default() });
    matches!(decide::by_hello(policy, &flow, &hello).action, Action::Relay(_))
}

#[test]
fn hundreds_of_malformed_documents_are_refused_or_harmless() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("a.yaml"), GOOD).expect("written");
    let sources = Sources {
        files: vec![dir.path().to_owned()],
        outbound: Some(Outbound::RegistryOnly),
        ..Sources::default()
    };
    let caller = Caller::new("default");
    let before = load(&sources, &caller).expect("accepted").inventory;
    let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scenarios/istio");
    let documents = documents::documents(&scenarios);
    let mut refused = 0;
    for document in &documents {
        let file = dir.path().join("b.yaml");
        fs::write(&file, &document.bytes).expect("written");
        let what = format!("{}\n{}", document.what, String::from_utf8_lossy(&document.bytes));
        match load_over(&sources, &caller, &before) {
            Ok(loaded) => {
                assert!(!document.hopeless, "accepted: {what}");
                assert!(passes(&loaded.snapshot.policy, "good.test"), "{what}");
                assert!(!passes(&loaded.snapshot.policy, "bad.test"), "{what}");
            }
            Err(errors) => {
                refused += 1;
                assert!(!errors.0.is_empty(), "{what}");
                let theirs = |notice: &Notice| notice.place.file == file;
                assert!(errors.0.iter().all(theirs), "{errors}\n{what}");
            }
        }
    }
    let hopeless = documents.iter().filter(|document| document.hopeless).count();
    assert!(
        hopeless >= 200 && refused > hopeless,
        "{hopeless} and {refused} of {}",
        documents.len()
    );
}

/// Larger than anything that is read.
#[test]
fn a_huge_file_is_refused_unread() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("a.yaml");
    let file = fs::File::create(&path).expect("made");
    file.set_len(crate::policy::node::MAX_FILE_BYTES + 1).expect("a hole");
    let sources = Sources { files: vec![path], ..Sources::default() };
    let errors = load(&sources, &Caller::new("default")).expect_err("refused");
    assert_eq!(lines(&errors, dir.path()), ["a.yaml: is larger than 50 MiB"]);
}
