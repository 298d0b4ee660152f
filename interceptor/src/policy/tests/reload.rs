//! What a changed set of files becomes beside the one in force: T-61, T-62.

use std::fs;

use super::*;

/// A directory of policy files that is loaded again and again.
struct Files {
    dir: tempfile::TempDir,
    sources: Sources,
    inventory: Inventory,
}

impl Files {
    /// One file, `p.yaml`, with `text`, loaded.
    fn new(text: &str) -> (Self, Loaded) {
        let dir = tempfile::tempdir().expect("a directory");
        let sources = Sources { files: vec![dir.path().to_owned()], ..Sources::default() };
        let mut files = Self { dir, sources, inventory: Inventory::default() };
        files.write("p.yaml", text);
        let loaded = load(&files.sources, &Caller::new("default")).expect("accepted");
        files.inventory = loaded.inventory.clone();
        (files, loaded)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join(name), text).expect("written");
    }

    /// Loads again; what changed, what is in force and what was rejected.
    fn reload(&mut self) -> Result<(String, Loaded), Vec<String>> {
        let before = self.inventory.clone();
        let loaded = load_over(&self.sources, &Caller::new("default"), &before)
            .map_err(|errors| lines(&errors, self.dir.path()))?;
        self.inventory = loaded.inventory.clone();
        Ok((before.changes(&loaded.inventory).to_string(), loaded))
    }
}

fn entry(name: &str, host: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}}}\n\
         spec: {{hosts: [{host}], resolution: DNS, ports: [{{number: 443, name: t, protocol: TLS}}]}}\n---\n"
    )
}

const TELEMETRY: &str = "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: t}\n\
                         spec: {accessLogging: [{providers: [{name: envoy}]}]}\n---\n";

/// The names in force, by what is kept of them.
fn hosts(loaded: &Loaded) -> usize {
    loaded.summary.services
}

#[test]
fn changes_are_counted_by_kind() {
    let (mut files, first) = Files::new(&(entry("a", "a.com") + &entry("b", "b.com") + TELEMETRY));
    assert_eq!(
        Inventory::default().changes(&first.inventory).to_string(),
        "+2 ServiceEntry, +1 Telemetry"
    );
    assert_eq!(files.reload().expect("accepted").0, "no resource changed");
    files.write(
        "p.yaml",
        &("# a comment\n".to_owned() + &entry("a", "a.com") + &entry("b", "c.com")),
    );
    assert_eq!(files.reload().expect("accepted").0, "~1 ServiceEntry, -1 Telemetry");
    files.write("q.yaml", &(entry("c", "c.org") + &entry("d", "d.org")));
    files.write("p.yaml", &entry("b", "c.com"));
    let (changes, loaded) = files.reload().expect("accepted");
    assert_eq!((changes.as_str(), hosts(&loaded)), ("+2 -1 ServiceEntry", 3));
    fs::remove_file(files.dir.path().join("q.yaml")).expect("removed");
    files.write("p.yaml", "# nothing on purpose\n");
    assert_eq!(files.reload().expect("accepted").0, "-3 ServiceEntry");
}

/// T-61: an invalid resource keeps its last good version, through several bad ones; a resource
/// that was never good, or that is taken away, has none.
#[test]
fn the_last_good_version_stays() {
    let (mut files, _) = Files::new(&(entry("a", "a.com") + &entry("b", "b.com")));
    for _ in 0..2 {
        files.write("p.yaml", &(entry("a", "\"*\"") + &entry("b", "b.org") + &entry("c", "\"*\"")));
        let (_, loaded) = files.reload().expect("accepted");
        let said: Vec<_> =
            loaded.rejected.iter().map(|n| (n.resource.as_deref(), n.message.as_str())).collect();
        assert_eq!(said.len(), 2, "{said:?}");
        assert_eq!(said[0].0, Some("ServiceEntry default/a"));
        assert!(said[0].1.ends_with("; its last good version stays"), "{said:?}");
        assert_eq!(said[1].0, Some("ServiceEntry default/c"));
        assert!(!said[1].1.contains("last good"), "{said:?}");
        assert_eq!(hosts(&loaded), 2, "a.com and b.org");
        assert_eq!(loaded.summary.service_entries, 2);
    }
    files.write("p.yaml", &(entry("a", "a.org") + &entry("b", "b.org")));
    let (changes, loaded) = files.reload().expect("accepted");
    assert_eq!(changes, "~1 ServiceEntry");
    assert!(loaded.rejected.is_empty());
    files.write("p.yaml", &entry("b", "b.org"));
    let (changes, _) = files.reload().expect("accepted");
    assert_eq!(changes, "-1 ServiceEntry");
    files.write("p.yaml", &(entry("a", "\"*\"") + &entry("b", "b.org")));
    let (changes, loaded) = files.reload().expect("accepted");
    assert_eq!((changes.as_str(), hosts(&loaded)), ("no resource changed", 1));
}

/// T-61: what is no configuration is refused whole, with its place.
#[test]
fn a_broken_set_is_refused_whole() {
    let (mut files, _) = Files::new(&entry("a", "a.com"));
    let half = entry("a", "a.com");
    for (bytes, expected) in [
        (b"a: [b\n".to_vec(), "p.yaml:1:4: not readable as YAML: "),
        (Vec::new(), "p.yaml: is empty, which is most likely a half-written file"),
        (b" \n\n".to_vec(), "p.yaml: is empty"),
        (half.as_bytes()[..half.len() - 40].to_vec(), "p.yaml:"),
        (b"\xff\xfe".to_vec(), "p.yaml: is not UTF-8 (byte 0)"),
        (b"kind: Nonsense\n".to_vec(), "p.yaml:1:7: kind: unknown kind"),
        (b"a: &a [*a]\n".to_vec(), "p.yaml:"),
    ] {
        fs::write(files.dir.path().join("p.yaml"), &bytes).expect("written");
        let errors = files.reload().expect_err("refused");
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(errors[0].starts_with(expected), "{text}: {errors:?}");
    }
    files.write("p.yaml", &entry("a", "a.com"));
    assert_eq!(files.reload().expect("accepted").0, "no resource changed");
}

/// A file that is named and gone is a mistake; one that a directory lost is not.
#[test]
fn a_named_file_that_is_gone_is_refused() {
    let (mut files, _) = Files::new(&entry("a", "a.com"));
    files.sources.files = vec![files.dir.path().join("p.yaml")];
    fs::remove_file(files.dir.path().join("p.yaml")).expect("removed");
    let errors = files.reload().expect_err("refused");
    assert!(errors[0].starts_with("p.yaml: cannot be read: "), "{errors:?}");
    files.sources.files = vec![files.dir.path().to_owned()];
    assert_eq!(files.reload().expect("accepted").0, "-1 ServiceEntry");
}

/// A mesh configuration counts as a resource, bare or not, and an emptied one is refused.
#[test]
fn mesh_configuration_changes() {
    let (mut files, _) = Files::new(&entry("a", "a.com"));
    let mesh = files.dir.path().join("mesh");
    fs::write(&mesh, "outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n").expect("written");
    files.sources.mesh_config = Some(mesh.clone());
    let (changes, loaded) = files.reload().expect("accepted");
    assert_eq!(changes, "+1 MeshConfig");
    assert_eq!(loaded.snapshot.outbound, Outbound::RegistryOnly);
    fs::write(&mesh, "").expect("written");
    files.reload().expect_err("ALLOW_ANY by a half-written file");
    fs::write(&mesh, "outboundTrafficPolicy: {mode: ALLOW_ANY}\n").expect("written");
    assert_eq!(files.reload().expect("accepted").0, "~1 MeshConfig");
}
