use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use interceptor_common::Namespace;
use tempfile::TempDir;

use super::*;
use crate::admin::{Covering, Sandbox};

const COOKIE: u64 = 41;
const PATH: &str = "/run/netns/cni-1";
const EXEMPT: Option<Namespace> = Some(entry(Namespace::EXEMPT, 0));
const UNSERVED: Option<Namespace> = Some(entry(Namespace::COVERED, 0));
const SERVED: Option<Namespace> = Some(entry(Namespace::COVERED, 15_001));

const fn entry(kind: u8, port_v4: u16) -> Namespace {
    Namespace { kind, port_v4, port_v6: 0, v4_listeners: 0, policy: 0, flags: 0, pad: 0 }
}

type Agent = fn(&Double, u32) -> Result<Covering, String>;

/// A node in memory, whose agent is a function of how often it was asked.
struct Double {
    table: RefCell<Option<BTreeMap<u64, Namespace>>>,
    hooks: Cell<Standing>,
    agent: Agent,
    asked: Cell<u32>,
    elapsed: Cell<Duration>,
    records: Records,
}

impl Node for &Double {
    fn cookie(&self, path: &Path) -> Result<u64, String> {
        let number = path.to_str().and_then(|path| path.strip_prefix("/run/netns/cni-"));
        let number = number.and_then(|number| number.parse::<u64>().ok());
        number.map(|number| 40 + number).ok_or_else(|| "gone".to_owned())
    }

    fn has_table(&self) -> Result<bool, String> {
        Ok(self.table.borrow().is_some())
    }

    fn get(&self, cookie: u64) -> Result<Option<Namespace>, String> {
        Ok(self.table.borrow().as_ref().and_then(|table| table.get(&cookie).copied()))
    }

    fn put(&self, cookie: u64, entry: Namespace) -> Result<bool, String> {
        // An agent that starts now would find the record.
        let fates: Vec<Fate> = self.records.all().iter().map(|record| record.fate).collect();
        let fate = if entry.is_exempt() { Fate::Exempt } else { Fate::Covered };
        assert_eq!(fates, [fate], "the record comes first");
        let mut table = self.table.borrow_mut();
        let table = table.as_mut();
        Ok(table.map(|table| table.insert(cookie, entry)).is_some())
    }

    fn remove(&self, cookie: u64) -> Result<(), String> {
        if let Some(table) = self.table.borrow_mut().as_mut() {
            table.remove(&cookie);
        }
        Ok(())
    }

    fn hooks(&self) -> Result<Standing, String> {
        Ok(self.hooks.get())
    }

    fn ask(&self, sandbox: &Sandbox, patience: Duration) -> Result<Covering, String> {
        assert!(patience > Duration::ZERO);
        assert_eq!((sandbox.cookie, sandbox.netns.as_path()), (COOKIE, Path::new(PATH)));
        assert_eq!((sandbox.name.as_str(), sandbox.uid.as_deref()), ("web-0", Some("u-1")));
        self.asked.set(self.asked.get() + 1);
        (self.agent)(self, self.asked.get())
    }

    fn elapsed(&self) -> Duration {
        self.elapsed.get()
    }

    fn pause(&self, moment: Duration) {
        self.elapsed.set(self.elapsed.get() + moment);
    }
}

fn is_away(_: &Double, _: u32) -> Result<Covering, String> {
    Err("no interceptor named default is running".to_owned())
}

fn serves(double: &Double, _: u32) -> Result<Covering, String> {
    if let Some(table) = double.table.borrow_mut().as_mut() {
        table.extend(SERVED.map(|entry| (COOKIE, entry)));
    }
    Ok(Covering::Covered)
}

fn says_exempt(_: &Double, _: u32) -> Result<Covering, String> {
    Ok(Covering::Exempt)
}

struct Place {
    double: Double,
    _dir: TempDir,
}

impl Place {
    fn new(table: Option<Option<Namespace>>, hooks: Standing, agent: Agent) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::at(dir.path().join("records"), "this".to_owned());
        let table = table.map(|entry| entry.map(|entry| (COOKIE, entry)).into_iter().collect());
        let double = Double {
            table: RefCell::new(table),
            hooks: Cell::new(hooks),
            agent,
            asked: Cell::default(),
            elapsed: Cell::default(),
            records,
        };
        Self { double, _dir: dir }
    }

    fn entry(&self) -> Option<Namespace> {
        (&self.double).get(COOKIE).unwrap()
    }

    fn fate(&self) -> Option<Fate> {
        self.double.records.all().first().map(|record| record.fate)
    }

    /// A call by containerd, with something changed about the configuration and the environment.
    fn call(&self, command: &str, more: Value, environment: &[(&str, &str)]) -> Outcome {
        let mut network = json!({
            "cniVersion": "1.0.0", "name": "net", "type": TYPE,
            "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.2/24"}]},
            "runtimeConfig": {"portMappings": []},
        });
        for (key, value) in more.as_object().unwrap() {
            network[key] = value.clone();
        }
        let usual = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", PATH),
            (
                "CNI_ARGS",
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u-1",
            ),
        ];
        let variable = |name: &str| {
            let mut all = environment.iter().chain(&usual);
            all.find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        act(variable, network.to_string().as_bytes(), |_| {
            (&self.double, self.double.records.clone())
        })
    }

    fn attach(&self, settings: &Value) -> Outcome {
        self.call("ADD", settings.clone(), &[])
    }
}

/// 0 for "done".
fn code(outcome: &Outcome) -> u64 {
    match outcome.done {
        true => 0,
        false => outcome.said.as_ref().expect("an error says so")["code"].as_u64().unwrap(),
    }
}

/// Who starts, and what the kernel knows of him then.
#[test]
fn add() {
    use Standing::{None as Nothing, Others, These};
    let exempt = json!({"exemptNamespaces": ["shop"]});
    let enforce = json!({"namespaces": {"shop": "enforce"}, "podLabels": false});
    let audit = json!({"defaultMode": "audit", "podLabels": false});
    let disabled = json!({"namespaces": {"shop": "disabled"}, "podLabels": false});
    let labels = json!({"namespaces": {"shop": "disabled"}});
    let later: Agent = |double, nth| match nth {
        1..=3 => Ok(Covering::NotYet("its policy is being compiled".to_owned())),
        _ => serves(double, nth),
    };
    let never: Agent = |_, _| Ok(Covering::NotYet("it is unknown".to_owned()));
    // Says so, and the kernel knows better.
    let boasts: Agent = |_, _| Ok(Covering::Covered);
    let absent = Some(None);
    type Row<'a> = (
        &'a str,
        &'a Value,
        Option<Option<Namespace>>,
        Standing,
        Agent,
        u64,
        Option<Namespace>,
        Option<Fate>,
    );
    let table: &[Row<'_>] = &[
        // Exempt by name: with an agent or without, after a reboot as well.
        ("table", &exempt, absent, These, is_away, 0, EXEMPT, Some(Fate::Exempt)),
        ("reboot", &exempt, None, Nothing, is_away, 0, None, Some(Fate::Exempt)),
        ("agent objects", &exempt, absent, These, serves, 0, EXEMPT, Some(Fate::Exempt)),
        ("unpinned", &exempt, None, Others, is_away, 11, None, None),
        ("was covered", &exempt, Some(UNSERVED), These, is_away, 0, EXEMPT, Some(Fate::Exempt)),
        // Covered: not without the agent, whatever is there.
        ("no agent", &enforce, absent, These, is_away, 11, None, None),
        ("nothing", &enforce, None, Nothing, is_away, 11, None, None),
        ("audit", &audit, absent, These, is_away, 11, None, None),
        ("at once", &enforce, absent, These, serves, 0, SERVED, Some(Fate::Covered)),
        ("later", &enforce, absent, These, later, 0, SERVED, Some(Fate::Covered)),
        ("never", &enforce, absent, These, never, 11, None, None),
        ("no hooks", &enforce, absent, Nothing, serves, 11, SERVED, None),
        ("others' hooks", &enforce, absent, Others, serves, 11, SERVED, None),
        ("no table", &enforce, None, These, serves, 11, None, None),
        ("boasts", &enforce, absent, These, boasts, 11, None, None),
        ("boasts of an exempt one", &enforce, Some(EXEMPT), These, boasts, 11, EXEMPT, None),
        // The agent knows the pod's own label.
        ("opted out", &enforce, absent, These, says_exempt, 0, EXEMPT, Some(Fate::Exempt)),
        ("opted in", &labels, absent, These, serves, 0, SERVED, Some(Fate::Covered)),
        ("opted in, no hooks", &disabled, absent, Nothing, boasts, 11, None, None),
        // Without it, a label that nobody can see may say "enforce".
        ("perhaps opted in", &labels, absent, These, is_away, 11, None, None),
        ("by namespace only", &disabled, absent, These, is_away, 0, EXEMPT, Some(Fate::Exempt)),
        ("the same, reboot", &disabled, None, Nothing, is_away, 0, None, Some(Fate::Exempt)),
        (
            "by default",
            &json!({"podLabels": false}),
            absent,
            These,
            is_away,
            0,
            EXEMPT,
            Some(Fate::Exempt),
        ),
        ("nothing said", &json!({}), absent, These, is_away, 11, None, None),
    ];
    for (name, settings, table, hooks, agent, expected, entry, fate) in table {
        let place = Place::new(*table, *hooks, *agent);
        let outcome = place.attach(settings);
        assert_eq!(code(&outcome), *expected, "{name}: {outcome:?}");
        assert_eq!((place.entry(), place.fate()), (*entry, *fate), "{name}");
        let said = outcome.said.unwrap();
        match expected {
            0 => assert_eq!(said["ips"][0]["address"], "10.1.0.2/24", "{name}: {said}"),
            _ => assert!(said["msg"].as_str().unwrap().contains("shop/web-0"), "{name}: {said}"),
        }
        assert_eq!(said["cniVersion"], "1.0.0", "{name}");
    }
}

#[test]
fn add_waits_as_long_as_it_is_told_and_asks_nobody_about_the_exempt() {
    let place = Place::new(Some(None), Standing::These, is_away);
    let outcome = place.attach(&json!({"waitSeconds": 3}));
    assert_eq!(code(&outcome), 11);
    let waited = place.double.elapsed.get();
    assert!((3000..3200).contains(&waited.as_millis()), "{waited:?}");
    assert!(place.double.asked.get() > 20);
    let said = outcome.said.unwrap();
    assert!(said["details"].as_str().unwrap().contains("is running"), "{said}");

    let place = Place::new(Some(None), Standing::These, |_, _| panic!("asked"));
    assert_eq!(code(&place.attach(&json!({"exemptNamespaces": ["shop"]}))), 0);
}

/// DEL succeeds, whatever is gone.
#[test]
fn del() {
    let exempt = json!({"exemptNamespaces": ["shop"]});
    let none: &[(&str, &str)] = &[];
    let gone: &[(&str, &str)] = &[("CNI_NETNS", "")];
    let place = || {
        let place = Place::new(Some(None), Standing::These, is_away);
        assert_eq!(code(&place.attach(&exempt)), 0);
        place
    };
    for environment in [none, gone, &[("CNI_NETNS", "/run/netns/other")]] {
        let place = place();
        assert_eq!(code(&place.call("DEL", json!({}), environment)), 0);
        assert_eq!((place.entry(), place.fate()), (None, None), "{environment:?}");
        assert_eq!(code(&place.call("DEL", json!({}), environment)), 0, "once more");
    }
    // Without a record, by the namespace.
    let stranger = place();
    stranger.double.records.remove("c1", "eth0").unwrap();
    assert_eq!(code(&stranger.call("DEL", json!({}), gone)), 0);
    assert_eq!(stranger.entry(), EXEMPT, "nobody can tell which it was");
    assert_eq!(code(&stranger.call("DEL", json!({}), none)), 0);
    assert_eq!(stranger.entry(), None);
    // What no plugin could understand.
    let place = place();
    for (more, environment) in [
        (json!({"cniVersion": "9.9.9"}), none),
        (json!({"name": 7}), none),
        (json!({}), &[("CNI_CONTAINERID", "../x")][..]),
    ] {
        let outcome = place.call("DEL", more, environment);
        assert!(outcome.done && outcome.said.is_none() && outcome.notes.len() == 1, "{outcome:?}");
    }
    assert_eq!(place.entry(), EXEMPT);
}

/// A pod with two interfaces is one namespace.
#[test]
fn an_entry_goes_with_its_last_interface() {
    let exempt = json!({"exemptNamespaces": ["shop"]});
    let place = Place::new(Some(None), Standing::These, is_away);
    assert_eq!(code(&place.attach(&exempt)), 0);
    let mut second = place.double.records.all().remove(0);
    second.interface = "net1".to_owned();
    place.double.records.write(&second).unwrap();
    assert_eq!(code(&place.call("DEL", json!({}), &[("CNI_IFNAME", "net1")])), 0);
    assert_eq!(place.entry(), EXEMPT);
    assert_eq!(code(&place.call("DEL", json!({}), &[])), 0);
    assert_eq!(place.entry(), None);
}

#[test]
fn check() {
    use Standing::{None as Nothing, Others, These};
    let exempt = json!({"exemptNamespaces": ["shop"]});
    let covered = json!({"defaultMode": "enforce"});
    // How it was attached; what the kernel knows and which hooks there are now; the code.
    let table = [
        (&exempt, Some(EXEMPT), These, 0),
        (&exempt, None, Nothing, 0),
        (&exempt, None, Others, 101),
        (&exempt, Some(None), These, 101),
        // Its label was changed since.
        (&exempt, Some(SERVED), These, 0),
        (&covered, Some(EXEMPT), These, 0),
        (&covered, Some(SERVED), These, 0),
        (&covered, Some(UNSERVED), These, 101),
        (&covered, Some(None), These, 101),
        (&covered, Some(SERVED), Nothing, 102),
        (&covered, None, Nothing, 102),
    ];
    for (settings, now, hooks, expected) in table {
        let place = Place::new(Some(None), These, serves);
        assert_eq!(code(&place.attach(settings)), 0);
        *place.double.table.borrow_mut() =
            now.map(|entry| entry.map(|entry| (COOKIE, entry)).into_iter().collect());
        place.double.hooks.set(hooks);
        let outcome = place.call("CHECK", settings.clone(), &[]);
        assert_eq!(code(&outcome), expected, "{settings} {now:?} {hooks:?} {outcome:?}");
        let other = place.call("CHECK", settings.clone(), &[("CNI_NETNS", "/run/netns/cni-2")]);
        assert_eq!(code(&other), 3, "another namespace");
        assert_eq!(code(&place.call("CHECK", settings.clone(), &[("CNI_CONTAINERID", "c2")])), 3);
    }
}

#[test]
fn gc() {
    let place = Place::new(Some(None), Standing::These, is_away);
    assert_eq!(code(&place.attach(&json!({"exemptNamespaces": ["shop"]}))), 0);
    let valid = json!([{"containerID": "c1", "ifname": "eth0"}]);
    let other = json!([{"containerID": "c2", "ifname": "eth0"}]);
    let key = "cni.dev/valid-attachments";
    assert_eq!(code(&place.call("GC", json!({}), &[])), 7, "nobody says what is valid");
    assert_eq!(code(&place.call("GC", json!({key: valid}), &[])), 0);
    assert_eq!(code(&place.call("GC", json!({key: other, "name": "another"}), &[])), 0);
    assert_eq!(place.entry(), EXEMPT);
    assert_eq!(code(&place.call("GC", json!({key: other}), &[])), 0);
    assert_eq!((place.entry(), place.fate()), (None, None));
}

#[test]
fn status() {
    use Standing::{None as Nothing, Others, These};
    for (table, hooks, expected) in [
        (None, Nothing, 0),
        (Some(None), Nothing, 0),
        (Some(None), These, 0),
        (Some(None), Others, 50),
        (None, Others, 50),
    ] {
        let place = Place::new(table, hooks, is_away);
        assert_eq!(code(&place.call("STATUS", json!({}), &[])), expected, "{table:?} {hooks:?}");
    }
}

#[test]
fn version() {
    let place = Place::new(None, Standing::None, is_away);
    for (asked, answered) in [("0.3.1", "0.3.1"), ("1.1.0", "1.1.0"), ("2.0.0", "1.1.0")] {
        let said = place.call("VERSION", json!({"cniVersion": asked}), &[]).said.unwrap();
        assert_eq!(said["cniVersion"], answered);
        assert_eq!(said["supportedVersions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    }
}

/// What the specification has a number for.
#[test]
fn what_is_wrong_with_a_call() {
    let none: &[(&str, &str)] = &[];
    let table = [
        (json!({"cniVersion": "0.2.0"}), none, 1),
        (json!({"cniVersion": null}), none, 7),
        (json!({"prevResult": null}), none, 7),
        (json!({"name": null}), none, 7),
        (json!({"defaultMode": "off"}), none, 7),
        (json!({"exemptNamespaces": "kube-system"}), none, 7),
        (json!({"waitSeconds": 61}), none, 7),
        (json!({"instance": "../other"}), none, 7),
        (json!({}), &[("CNI_COMMAND", "")][..], 4),
        (json!({}), &[("CNI_COMMAND", "add")], 4),
        (json!({}), &[("CNI_CONTAINERID", "")], 4),
        (json!({}), &[("CNI_CONTAINERID", "../c1")], 4),
        (json!({}), &[("CNI_CONTAINERID", ".c1")], 4),
        (json!({}), &[("CNI_IFNAME", "eth0/..")], 4),
        (json!({}), &[("CNI_IFNAME", "..")], 4),
        (json!({}), &[("CNI_IFNAME", "sixteen-letters-")], 4),
        (json!({}), &[("CNI_NETNS", "")], 4),
        (json!({}), &[("CNI_NETNS", "/run/netns/gone")], 4),
        (json!({}), &[("CNI_ARGS", "")], 4),
        (json!({}), &[("CNI_ARGS", "K8S_POD_NAMESPACE=shop")], 4),
    ];
    for (more, environment, expected) in table {
        let place = Place::new(Some(None), Standing::These, serves);
        let outcome = place.call("ADD", more.clone(), environment);
        assert_eq!(code(&outcome), expected, "{more} {environment:?} {outcome:?}");
        let said = outcome.said.unwrap();
        assert!(said["cniVersion"].is_string() && said["details"].is_string(), "{said}");
        assert_eq!((place.entry(), place.fate()), (None, None), "{more} {environment:?}");
    }
    let no_json = act(
        |name| (name == "CNI_COMMAND").then(|| "ADD".to_owned()),
        b"{",
        |_| -> (&Double, Records) { unreachable!() },
    );
    assert_eq!(code(&no_json), 6);
}

#[test]
fn records_of_another_boot_exempt_nobody() {
    let place = Place::new(Some(None), Standing::These, is_away);
    assert_eq!(code(&place.attach(&json!({"exemptNamespaces": ["shop"]}))), 0);
    let directory = place._dir.path().join("records");
    let same = Records::at(directory.clone(), "this".to_owned()).all();
    assert_eq!((same.len(), same[0].cookie), (1, COOKIE));
    assert!(Records::at(directory, "next".to_owned()).all().is_empty());
}

#[test]
fn what_it_is_called_by() {
    for (name, plugin) in [
        ("/opt/cni/bin/interceptor-cni", true),
        ("interceptor-cni", true),
        ("/usr/bin/interceptor", false),
        ("interceptor-cni/interceptor", false),
    ] {
        assert_eq!(is_called_by(OsStr::new(name)), plugin, "{name}");
    }
}
