//! One call by the runtime: its environment and what it writes to us. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Code, Failure, Settings};

/// The versions of the specification that we speak; the last is the newest.
const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The longest id of a container; runtimes' have 64 letters.
const MOST_ID: usize = 128;

/// The longest name of an interface (IFNAMSIZ, without the zero).
const MOST_INTERFACE: usize = 15;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Attach a container.
    Add,
    /// Forget it.
    Del,
    /// Is it as ADD left it?
    Check,
    /// Forget all but these.
    Gc,
    /// Can containers be attached?
    Status,
    /// Which versions do you speak?
    Version,
}

impl Command {
    /// Reads CNI_COMMAND.
    ///
    /// # Errors
    /// It is missing, or another one.
    pub fn read(text: Option<&str>) -> Result<Self, Failure> {
        Ok(match text {
            Some("ADD") => Self::Add,
            Some("DEL") => Self::Del,
            Some("CHECK") => Self::Check,
            Some("GC") => Self::Gc,
            Some("STATUS") => Self::Status,
            Some("VERSION") => Self::Version,
            other => {
                return Err(Failure::new(
                    Code::Environment,
                    format!("CNI_COMMAND is {}", other.unwrap_or("missing")),
                    "a container runtime calls this plugin with ADD, DEL, CHECK, GC, STATUS or VERSION",
                ));
            }
        })
    }

    /// Whether it is about one container.
    fn is_about_one(self) -> bool {
        matches!(self, Self::Add | Self::Del | Self::Check)
    }
}

/// One container's interface.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
pub struct Attachment {
    /// The container's id: letters, digits, `_`, `.` and `-`.
    #[serde(rename = "containerID")]
    pub container: String,
    /// The interface's name.
    #[serde(rename = "ifname")]
    pub interface: String,
}

impl Attachment {
    /// Whether both can be parts of a file's name.
    fn is_plain(&self) -> bool {
        let Self { container, interface } = self;
        let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        let first = container.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
        let bad = |c: char| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control();
        first
            && container.len() <= MOST_ID
            && container.bytes().all(word)
            && (1..=MOST_INTERFACE).contains(&interface.len())
            && !interface.contains(bad)
            && !matches!(interface.as_str(), "." | "..")
    }
}

/// The pod that a container belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) namespace: String,
    pub(super) name: String,
    /// Where the runtime says it.
    pub(super) uid: Option<String>,
}

/// A network's configuration as a plugin gets it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Network {
    /// The version of the specification.
    #[serde(rename = "cniVersion", default)]
    pub version: String,
    /// The network's name.
    pub name: String,
    /// What the plugin before us in the chain made.
    #[serde(rename = "prevResult")]
    pub previous: Option<Value>,
    /// For GC: what is still attached.
    #[serde(rename = "cni.dev/valid-attachments", alias = "cni.dev/attachments")]
    pub valid: Option<Vec<Attachment>>,
    /// Ours.
    #[serde(flatten)]
    pub settings: Settings,
}

/// A call that can be acted on.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// What is asked.
    pub command: Command,
    /// For which network.
    pub network: Network,
    attachment: Option<Attachment>,
    netns: Option<PathBuf>,
    arguments: BTreeMap<String, String>,
}

impl Call {
    /// Reads a call.
    ///
    /// # Errors
    /// The configuration or the environment is not as the specification has it.
    pub fn read(
        command: Command,
        variable: impl Fn(&str) -> Option<String>,
        input: &[u8],
    ) -> Result<Self, Failure> {
        let value: Value = serde_json::from_slice(input).map_err(|error| {
            Failure::new(Code::Decode, "the network configuration is no JSON", error)
        })?;
        let wrong = |why| Failure::new(Code::Configuration, "the network configuration", why);
        let network: Network =
            serde_json::from_value(value).map_err(|error| wrong(error.to_string()))?;
        if !VERSIONS.contains(&network.version.as_str()) {
            return Err(Failure::new(
                Code::IncompatibleVersion,
                format!("cniVersion \"{}\" is not spoken here", network.version),
                format!("spoken are {}", VERSIONS.join(", ")),
            ));
        }
        network.settings.check().map_err(wrong)?;
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let attachment = match command.is_about_one() {
            true => Some(attachment(&set)?),
            false => None,
        };
        let arguments = set("CNI_ARGS").unwrap_or_default();
        let pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
        let arguments = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let netns = set("CNI_NETNS").map(PathBuf::from);
        Ok(Self { command, network, attachment, netns, arguments })
    }

    /// Which container's interface it is about.
    pub(super) fn attachment(&self) -> Result<&Attachment, Failure> {
        self.attachment.as_ref().ok_or_else(|| missing("CNI_CONTAINERID"))
    }

    /// The container's network namespace, if there is one.
    pub(super) fn netns_if_any(&self) -> Option<&Path> {
        self.netns.as_deref()
    }

    /// The container's network namespace.
    pub(super) fn netns(&self) -> Result<&Path, Failure> {
        self.netns_if_any().ok_or_else(|| missing("CNI_NETNS"))
    }

    /// The pod. What is no pod's has no labels and no policy, so nobody could say what it may do.
    pub(super) fn pod(&self) -> Result<Pod, Failure> {
        let argument = |name: &str| {
            let value = self.arguments.get(name).filter(|value| !value.is_empty());
            value.cloned().ok_or_else(|| {
                Failure::new(
                    Code::Environment,
                    format!("CNI_ARGS has no {name}"),
                    "this plugin attaches pods of Kubernetes",
                )
            })
        };
        Ok(Pod {
            namespace: argument("K8S_POD_NAMESPACE")?,
            name: argument("K8S_POD_NAME")?,
            uid: argument("K8S_POD_UID").ok(),
        })
    }

    /// What the plugin before us made, in the form that is asked for: our own result.
    pub(super) fn previous(&self) -> Result<Value, Failure> {
        let mut previous = self.network.previous.clone().ok_or_else(|| {
            Failure::new(
                Code::Configuration,
                "no prevResult",
                "this plugin makes no network: it stands behind one that does",
            )
        })?;
        if let Value::Object(fields) = &mut previous {
            fields.insert("cniVersion".to_owned(), self.network.version.clone().into());
        }
        Ok(previous)
    }
}

fn missing(variable: &str) -> Failure {
    Failure::new(Code::Environment, format!("{variable} is missing"), "the runtime sets it")
}

fn attachment(set: &impl Fn(&str) -> Option<String>) -> Result<Attachment, Failure> {
    let attachment = Attachment {
        container: set("CNI_CONTAINERID").ok_or_else(|| missing("CNI_CONTAINERID"))?,
        interface: set("CNI_IFNAME").ok_or_else(|| missing("CNI_IFNAME"))?,
    };
    match attachment.is_plain() {
        true => Ok(attachment),
        false => Err(Failure::new(
            Code::Environment,
            "CNI_CONTAINERID or CNI_IFNAME",
            "a container's id is of letters, digits, _, . and -; an interface's name has at most 15 \
             letters and neither / nor :",
        )),
    }
}

/// The version that whoever wrote `input` speaks, or the newest that we do.
pub(super) fn version(input: &[u8]) -> String {
    let asked = serde_json::from_slice::<Value>(input).ok();
    let asked = asked.as_ref().and_then(|value| value["cniVersion"].as_str());
    asked.filter(|asked| VERSIONS.contains(asked)).unwrap_or(newest()).to_owned()
}

/// The newest version that we speak.
fn newest() -> &'static str {
    VERSIONS[VERSIONS.len() - 1]
}

/// Whether a configuration of this version can be acted on.
pub(super) fn speaks(version: &str) -> bool {
    VERSIONS.contains(&version)
}

/// The answer to VERSION.
pub(super) fn versions(input: &[u8]) -> Value {
    json!({"cniVersion": version(input), "supportedVersions": VERSIONS})
}
