//! The processes of `local`: each with what it takes to start it again, in `<run>/local/lab.json`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::args::{self, LocalOptions};
use crate::cache::{self, Layout};
use crate::local::{cuts, kafka};
use crate::machine::is_root;
use crate::shell;

/// How long a part may take until it answers: Kafka needs 3 to 6 s on two busy cores.
const START_LIMIT: Duration = Duration::from_mins(1);

/// How long a part may take to stop by itself before it is killed: a node flushes and hands over first.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// Starts a program in the background, prints its pid, and stays until it ends: `log program arguments…`.
const KEEPER: &str = r#"log=$1; shift; "$@" >>"$log" 2>&1 & echo $!; exec >&-; wait"#;

/// How long a killed process may take to disappear.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// Everything that `local` runs.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Lab {
    /// The processes, in the order of their start.
    pub parts: Vec<Part>,
}

/// One process.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Part {
    /// `kafka-0`, `postgres`, `node-0`, …
    pub name: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables on top of the lab's own.
    pub env: BTreeMap<String, String>,
    /// Working directory.
    pub cwd: PathBuf,
    /// Standard output and error, appended.
    pub log: PathBuf,
    /// Ports on 127.0.0.1 that it listens on; a node's first is REST, its second admin.
    pub ports: Vec<u16>,
    /// The process, whether it still runs or not.
    pub pid: Option<u32>,
    /// When the process started, in clock ticks since boot: a reused pid has another.
    pub started_ticks: Option<u64>,
}

impl Lab {
    /// What `lab.json` says; nothing if it is absent.
    pub fn load(layout: &Layout) -> Result<Self> {
        let path = file(layout);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is damaged: remove it", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Writes `lab.json`, whole.
    pub fn save(&self, layout: &Layout) -> Result<()> {
        let path = file(layout);
        let partial = path.with_extension("json.partial");
        cache::write(&partial, serde_json::to_string_pretty(self)?)?;
        std::fs::rename(&partial, &path).context("cannot put lab.json in place")
    }

    /// Whether any part runs.
    pub fn is_running(&self) -> bool {
        self.parts.iter().any(Part::is_running)
    }

    /// Whether it was never taken down, and all its processes ended with the machine or by hand.
    pub fn is_leftover(&self) -> bool {
        !self.parts.is_empty() && !self.is_running()
    }

    /// The addresses that Kafka's clients start from.
    pub fn kafka(&self) -> String {
        kafka::bootstrap(self.count("kafka-"))
    }

    /// What it takes to bring up the same again; the usual size where nothing runs.
    pub fn options(&self, only_services: bool) -> LocalOptions {
        let or = |count: u16, usual: u16| if count == 0 { usual } else { count };
        let nodes = or(self.count("node-"), args::USUAL_NODES);
        let brokers = or(self.count("kafka-"), args::USUAL_BROKERS);
        LocalOptions {
            nodes,
            brokers,
            only_services,
            small_disks: false,
        }
    }

    /// How many parts have a name that starts so.
    pub fn count(&self, prefix: &str) -> u16 {
        let count = self
            .parts
            .iter()
            .filter(|part| part.name.starts_with(prefix))
            .count();
        u16::try_from(count).expect("the command line allows far fewer")
    }

    /// A part by its name.
    pub fn part_mut(&mut self, name: &str) -> Result<&mut Part> {
        let names = self
            .parts
            .iter()
            .map(|part| part.name.clone())
            .collect::<Vec<_>>()
            .join(", ");
        match self.parts.iter_mut().find(|part| part.name == name) {
            Some(part) => Ok(part),
            None if names.is_empty() => bail!("local does not run: `cargo lab local` starts it"),
            None => bail!("local has no part {name}; it has {names}"),
        }
    }

    /// Waits until `ready` gives a value, and fails early with its log if the part dies meanwhile.
    pub fn watch<T>(&self, name: &str, mut ready: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let part = self
            .parts
            .iter()
            .find(|part| part.name == name)
            .context("the part is known")?;
        let waited = shell::wait_for(&format!("an answer of {name}"), START_LIMIT, || {
            if !part.is_running() {
                bail!("{name} stopped");
            }
            ready()
        });
        waited.with_context(|| {
            format!(
                "{name} does not work; log {}:\n{}",
                part.log.display(),
                shell::tail(&part.log)
            )
        })
    }
}

impl Part {
    /// Starts the process, in a group of its own where connections can be cut by it, below a shell that outlives the lab and reaps it: PostgreSQL takes a zombie for a server that
    /// still runs, and not every machine's first process reaps at once.
    pub fn start(&mut self) -> Result<()> {
        drop(shell::open_log(&self.log)?);
        let group = cuts::group_of(&self.name).filter(|_| is_root());
        let in_group = group.map(|group| {
            [
                "setpriv".to_owned(),
                format!("--regid={group}"),
                "--clear-groups".to_owned(),
            ]
        });
        let mut keeper = shell::command(&["sh", "-c", KEEPER, "sh"])
            .arg(&self.log)
            .args(in_group.iter().flatten())
            .args(&self.argv)
            .envs(&self.env)
            .current_dir(&self.cwd)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", self.name))?;
        let mut pid = String::new();
        let pipe = keeper
            .stdout
            .take()
            .expect("standard output was asked for as a pipe");
        BufReader::new(pipe).read_line(&mut pid)?;
        let pid = pid
            .trim()
            .parse()
            .with_context(|| format!("{} did not start", self.name))?;
        self.pid = Some(pid);
        self.started_ticks = process(pid).map(|process| process.started_ticks);
        Ok(())
    }

    /// Whether the very process that was started still runs.
    pub fn is_running(&self) -> bool {
        self.pid.and_then(process).is_some_and(|process| {
            !process.is_dead && Some(process.started_ticks) == self.started_ticks
        })
    }

    /// Whether its program was built anew since it started: the file that it runs is gone.
    pub fn is_outdated(&self) -> bool {
        let Some(pid) = self.pid else { return false };
        let program = std::fs::read_link(format!("/proc/{pid}/exe"));
        program.is_ok_and(|file| file.to_string_lossy().ends_with(" (deleted)"))
    }

    /// Sends a signal; after one that ends the process, waits until it is gone.
    pub fn signal(&self, signal: &str) -> Result<()> {
        let Some(pid) = self.pid.filter(|_| self.is_running()) else {
            bail!("{} does not run", self.name);
        };
        if !signal.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            bail!(
                "`{signal}` is no signal: give its name or number, such as KILL, TERM, STOP, CONT"
            );
        }
        let script = format!("kill -{} {pid}", signal.trim_start_matches("SIG"));
        shell::output(&mut shell::command(&["sh", "-c", &script]))?;
        match signal.trim_start_matches("SIG") {
            "KILL" | "9" => self.wait_until_gone(KILL_LIMIT),
            "TERM" | "15" | "INT" | "2" => self.wait_until_gone(STOP_LIMIT),
            _ => Ok(()),
        }
    }

    /// Asks the process to stop, and kills it if it does not.
    pub fn stop(&self) -> Result<()> {
        if !self.is_running() {
            return Ok(());
        }
        // A stopped (SIGSTOP) process handles nothing else before it continues. The part may end in between.
        let _ = self.signal("CONT");
        let ended = self.signal(self.stop_signal());
        if ended.is_err() && self.is_running() {
            return self.signal("KILL");
        }
        Ok(())
    }

    /// PostgreSQL waits for its clients after TERM. Kafka waits for the other brokers, although its data goes with it.
    fn stop_signal(&self) -> &'static str {
        match self.name.as_str() {
            "postgres" => "INT",
            name if name.starts_with("kafka-") => "KILL",
            _ => "TERM",
        }
    }

    fn wait_until_gone(&self, limit: Duration) -> Result<()> {
        let what = format!("the end of {}", self.name);
        shell::wait_for(&what, limit, || Ok((!self.is_running()).then_some(())))
    }
}

struct Process {
    is_dead: bool,
    started_ticks: u64,
}

fn process(pid: u32) -> Option<Process> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// `pid (name) state ppid … starttime …`; the name may hold spaces and parentheses.
fn parse_stat(stat: &str) -> Option<Process> {
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let is_dead = matches!(*fields.first()?, "Z" | "X");
    Some(Process {
        is_dead,
        started_ticks: fields.get(19)?.parse().ok()?,
    })
}

fn file(layout: &Layout) -> PathBuf {
    layout.run("local").join("lab.json")
}

/// The log of a local part.
pub fn log_file(layout: &Layout, name: &str) -> PathBuf {
    Path::new(&layout.run("local"))
        .join("logs")
        .join(format!("{name}.log"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(argv: &[&str]) -> Part {
        Part {
            name: "node-0".to_owned(),
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
            env: BTreeMap::new(),
            cwd: PathBuf::from("/"),
            log: PathBuf::from("/dev/null"),
            ports: Vec::new(),
            pid: None,
            started_ticks: None,
        }
    }

    #[test]
    fn a_process_is_told_from_another_with_its_pid() {
        let own = std::process::id();
        let ticks = process(own).expect("the test runs").started_ticks;
        let mut other = part(&["true"]);
        other.pid = Some(own);
        other.started_ticks = Some(ticks + 1);
        assert!(!other.is_running());
        other.started_ticks = Some(ticks);
        assert!(other.is_running());
    }

    #[test]
    fn a_lab_of_ended_processes_is_a_leftover() {
        let mut lab = Lab::default();
        assert!(!lab.is_leftover() && !lab.is_running(), "nothing was made");
        lab.parts = vec![part(&["true"]), part(&["true"])];
        assert!(lab.is_leftover() && !lab.is_running());
        let own = std::process::id();
        lab.parts[1].pid = Some(own);
        lab.parts[1].started_ticks = process(own).map(|process| process.started_ticks);
        assert!(lab.is_running() && !lab.is_leftover(), "one part runs");
    }

    #[test]
    fn a_part_starts_and_is_killed() {
        let mut sleeper = part(&["sleep", "600"]);
        assert!(!sleeper.is_running());
        sleeper.start().expect("sleep starts");
        assert!(sleeper.is_running());
        sleeper.signal("KILL").expect("it can be killed");
        assert!(!sleeper.is_running());
        assert!(
            sleeper.signal("KILL").is_err(),
            "a dead part takes no signal"
        );
    }

    #[test]
    fn stat_lines_with_odd_names_parse() {
        let line = "7 (a) b) c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9";
        let parsed = parse_stat(line).expect("it is well-formed");
        assert!(!parsed.is_dead);
        assert_eq!(parsed.started_ticks, 4242);
        assert!(parse_stat("7 (a) Z 1").is_none());
    }

    #[test]
    fn a_signal_is_a_word_and_no_script() {
        let mut own = part(&["true"]);
        own.pid = Some(std::process::id());
        own.started_ticks = process(std::process::id()).map(|process| process.started_ticks);
        assert!(own.signal("0; true").is_err());
        assert!(own.signal("0").is_ok());
    }
}
