use std::collections::BTreeMap;

use tempfile::TempDir;

use super::*;
use crate::agent::pods::Mode;

const LIST: &str = r#"{ "cniVersion": "1.0.0",  "name": "k8s-pod-network",
  "plugins": [ {"type": "calico", "mtu": 0}, {"type": "portmap"} ] }"#;
const SINGLE: &str = r#"{"cniVersion": "0.3.1", "name": "mynet", "type": "bridge", "ipam": {}}"#;

struct Place {
    dir: TempDir,
    installer: Installer,
}

impl Place {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let (binaries, networks) = (at("bin"), at("net.d"));
        let own = dir.path().join("interceptor");
        fs::write(&own, "the binary").unwrap();
        let settings = Settings { instance: "node".to_owned(), ..Settings::default() };
        let place = Self { dir, installer: Installer { binaries, networks, own, settings } };
        for (name, text) in files {
            place.put(name, text);
        }
        place
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.installer.networks.join(name), text).unwrap();
    }

    /// Every file of a directory, with what is in it.
    fn files(&self, directory: &str) -> BTreeMap<String, String> {
        let entries = fs::read_dir(self.dir.path().join(directory)).unwrap().map(Result::unwrap);
        let name = |entry: &fs::DirEntry| entry.file_name().into_string().unwrap();
        entries.map(|one| (name(&one), fs::read_to_string(one.path()).unwrap())).collect()
    }

    fn networks(&self) -> BTreeMap<String, String> {
        self.files("net.d")
    }

    fn types(&self, name: &str) -> Vec<String> {
        let list: Value = serde_json::from_str(&self.networks()[name]).unwrap();
        plugins(&list).map(|plugin| plugin["type"].as_str().unwrap().to_owned()).collect()
    }

    fn install(&self) -> String {
        let file = self.installer.install().unwrap();
        assert!(self.installer.is_installed());
        file.file_name().unwrap().to_str().unwrap().to_owned()
    }
}

/// Which file of several, what is in it then, and that everything comes back.
#[test]
fn the_first_network_gets_the_plugin_at_its_end() {
    let list = ["calico", "portmap", TYPE];
    // Name and text of a file.
    type Files<'a> = &'a [(&'a str, &'a str)];
    let table: &[(Files<'_>, &str, &[&str])] = &[
        (&[("10-calico.conflist", LIST)], "10-calico.conflist", &list),
        (&[("20-b.conflist", LIST), ("10-a.conflist", LIST)], "10-a.conflist", &list),
        (&[("20-b.conflist", LIST), ("10-a.conf", SINGLE)], "10-a.conflist", &["bridge", TYPE]),
        (&[("10-a.json", SINGLE)], "10-a.conflist", &["bridge", TYPE]),
        (&[("00-readme.txt", "no"), ("10-a.conflist", LIST)], "10-a.conflist", &list),
        (&[("00-a.conflist.bak", "no"), ("10-a.conflist", LIST)], "10-a.conflist", &list),
    ];
    for (files, chosen, types) in table {
        let place = Place::new(files);
        let before = place.networks();
        assert!(!place.installer.is_installed());
        assert_eq!(place.install(), *chosen, "{files:?}");
        assert_eq!(place.types(chosen), *types, "{files:?}");
        assert_eq!(place.files("bin")[TYPE], "the binary");
        // The runtime's first is ours.
        let mut counted = place.networks().into_keys().filter(|name| counts(Path::new(name)));
        assert_eq!(counted.next().as_deref(), Some(*chosen), "{files:?}");
        let once = place.networks();
        assert_eq!(place.install(), *chosen);
        assert_eq!(place.networks(), once, "a second time changes nothing");
        place.installer.remove(false).unwrap();
        assert_eq!(place.networks(), before, "byte for byte");
        assert!(place.files("bin").is_empty() && !place.installer.is_installed());
        place.installer.remove(false).unwrap();
        assert_eq!(place.networks(), before);
    }
}

#[test]
fn what_is_around_it_stays() {
    let place = Place::new(&[("10-a.conf", SINGLE)]);
    let path = place.installer.networks.join("10-a.conf");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let name = place.install();
    let file = place.installer.networks.join(&name);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
    let list: Value = serde_json::from_str(&place.networks()[&name]).unwrap();
    assert_eq!((&list["name"], &list["cniVersion"]), (&json!("mynet"), &json!("0.3.1")));
    assert_eq!(list["plugins"][0], serde_json::from_str::<Value>(SINGLE).unwrap());
    assert_eq!(list["plugins"][1]["instance"], "node");
    let binary = fs::metadata(place.installer.binaries.join(TYPE)).unwrap();
    assert_eq!(binary.permissions().mode() & 0o777, 0o755);
    // The settings are read as they were written.
    let read: Settings = serde_json::from_value(list["plugins"][1].clone()).unwrap();
    assert_eq!(read, place.installer.settings);
}

/// What cannot be understood, or would not work with the plugin in it, stays as it is, byte for byte.
#[test]
fn what_cannot_be_read_is_left_alone() {
    let old = LIST.replace("1.0.0", "0.2.0");
    let newer = LIST.replace("1.0.0", "2.0.0");
    let table: &[(&[(&str, &str)], &str)] = &[
        (&[], "no network's configuration yet"),
        (&[("10-a.conflist", "{\"name\": \"half")], "no JSON"),
        (&[("10-a.conflist", "{\"name\": \"half"), ("20-b.conflist", LIST)], "no JSON"),
        (&[("10-a.conflist", "")], "no JSON"),
        (&[("10-a.conflist", SINGLE)], "no plugins"),
        (
            &[("10-a.conflist", r#"{"cniVersion": "1.0.0", "name": "n", "plugins": []}"#)],
            "no plugins",
        ),
        (
            &[("10-a.conflist", r#"{"cniVersion": "1.0.0", "name": "n", "plugins": [{}]}"#)],
            "a type",
        ),
        (&[("10-a.conflist", &LIST.replace("\"name\"", "\"label\""))], "no name"),
        (&[("10-a.conflist", &old)], "cniVersion 0.2.0"),
        (&[("10-a.conflist", &newer)], "cniVersion 2.0.0"),
        (&[("10-a.conf", LIST)], "without a type"),
        (&[("10-a.conf", SINGLE), ("10-a.conflist", LIST)], "is there too"),
    ];
    for (files, why) in table {
        let place = Place::new(files);
        let before = place.networks();
        let error = place.installer.install().expect_err("refused").to_string();
        assert!(error.contains(why), "{why}: {error}");
        assert_eq!(place.networks(), before, "{why}");
        assert!(!place.installer.is_installed());
        place.installer.remove(false).unwrap();
        assert_eq!(place.networks(), before, "{why}");
    }
}

/// The network's own agent does not know of us.
#[test]
fn a_file_that_is_written_anew_gets_it_again() {
    for (name, text) in [("10-a.conflist", LIST), ("10-a.conf", SINGLE)] {
        let place = Place::new(&[(name, text)]);
        let chosen = place.install();
        let newer = text.replace("name\": \"", "name\": \"new-");
        place.put(name, &newer);
        assert!(!place.installer.is_installed(), "{name}");
        assert_eq!(place.install(), chosen);
        assert!(
            place.networks()[&chosen].contains("new-")
                && place.types(&chosen).contains(&TYPE.into())
        );
        place.installer.remove(false).unwrap();
        assert_eq!(place.networks(), [(name.to_owned(), newer)].into(), "{name}");
    }
    // Anew, and removed before that was noticed: what is new stays.
    let place = Place::new(&[("10-a.conf", SINGLE)]);
    place.install();
    let newer = SINGLE.replace("mynet", "newer");
    place.put("10-a.conf", &newer);
    place.installer.remove(false).unwrap();
    assert_eq!(place.networks(), [("10-a.conf".to_owned(), newer)].into());
    // Another file that comes first.
    let place = Place::new(&[("10-a.conflist", LIST)]);
    place.install();
    place.put("05-b.conflist", LIST);
    assert!(!place.installer.is_installed());
    assert_eq!(place.install(), "05-b.conflist");
    place.installer.remove(false).unwrap();
    let names: Vec<_> = place.networks().into_iter().collect();
    let both = ["05-b.conflist", "10-a.conflist"].map(|name| (name.to_owned(), LIST.to_owned()));
    assert_eq!(names, both);
}

#[test]
fn other_settings_or_another_binary_are_not_installed_yet() {
    let mut place = Place::new(&[("10-a.conflist", LIST)]);
    place.install();
    place.installer.settings.namespaces.insert("shop".to_owned(), Mode::Enforce);
    assert!(!place.installer.is_installed());
    // Somebody stands behind us meanwhile.
    let text = place.networks()["10-a.conflist"].clone();
    let mut list: Value = serde_json::from_str(&text).unwrap();
    list["plugins"].as_array_mut().unwrap().push(json!({"type": "last"}));
    place.put("10-a.conflist", &list.to_string());
    place.install();
    assert_eq!(place.types("10-a.conflist"), ["calico", "portmap", TYPE, "last"]);
    assert!(place.networks()["10-a.conflist"].contains("\"shop\": \"enforce\""));

    fs::write(&place.installer.own, "THE BINARY").unwrap();
    place.install();
    assert_eq!(place.files("bin")[TYPE], "THE BINARY");
    fs::write(&place.installer.own, "a longer binary").unwrap();
    assert!(!place.installer.is_installed());
    place.install();
    assert_eq!(place.files("bin")[TYPE], "a longer binary");
    // Pods are there whose end it will be called for.
    place.installer.remove(true).unwrap();
    assert_eq!(place.types("10-a.conflist"), ["calico", "portmap", "last"]);
    assert_eq!(place.files("bin").len(), 1);
}
