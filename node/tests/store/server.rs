//! A PostgreSQL server of the test's own, that may be killed.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};

const PROGRAMS: &str = "KVCLUSTER_TEST_POSTGRES_BIN";
const DEBIAN_PROGRAMS: &str = "/usr/lib/postgresql";
/// Longest start, recovery included.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server with its data in a folder of its own; both go with it.
pub(crate) struct Server {
    programs: PathBuf,
    data: PathBuf,
    port: u16,
    process: Option<Child>,
}

impl Server {
    /// A fresh one. Commits that do not wait for the disk stay in its memory for ten seconds, so that a kill loses them.
    pub(crate) async fn start() -> Self {
        let programs = std::env::var_os(PROGRAMS).map_or_else(newest_programs, PathBuf::from);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        drop(listener);
        let data =
            std::env::temp_dir().join(format!("kvcluster-test-{}-{port}", std::process::id()));
        let mut server = Self {
            programs,
            data,
            port,
            process: None,
        };
        let initdb = server
            .command("initdb")
            .args(["--no-sync", "-A", "trust", "-U", "postgres", "-D"])
            .arg(&server.data)
            .output();
        let initdb = initdb.expect("initdb starts");
        assert!(
            initdb.status.success(),
            "{}",
            String::from_utf8_lossy(&initdb.stderr)
        );
        server.up().await;
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// Starts it (again) and waits until it answers.
    pub(crate) async fn up(&mut self) {
        let start = Instant::now();
        while PgConnection::connect(&self.url()).await.is_err() {
            assert!(
                start.elapsed() < PATIENCE,
                "the server does not start: {}",
                self.log()
            );
            // Right after a kill its children may still hold the memory; then it ends at once and is started again.
            let ended = self
                .process
                .as_mut()
                .is_none_or(|process| process.try_wait().expect("its state is known").is_some());
            if ended {
                self.process = Some(self.spawn());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Kills it as a crash would.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().expect("it is killed");
        process.wait().expect("it ends");
    }

    fn spawn(&self) -> Child {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_file());
        let port = self.port.to_string();
        self.command("postgres")
            .arg("-D")
            .arg(&self.data)
            .args(["-h", "127.0.0.1", "-k", "", "-p", &port])
            .args(["-c", "wal_writer_delay=10s", "-c", "autovacuum=off"])
            .stdout(Stdio::null())
            .stderr(log.expect("a log file"))
            .spawn()
            .expect("postgres starts")
    }

    /// PostgreSQL refuses to run as root: there it runs as the user `postgres`.
    fn command(&self, program: &str) -> Command {
        let program = self.programs.join(program);
        let root = Command::new("id")
            .arg("-u")
            .output()
            .expect("id runs")
            .stdout
            == b"0\n";
        let mut command = if root {
            let mut command = Command::new("setpriv");
            command
                .args([
                    "--reuid=postgres",
                    "--regid=postgres",
                    "--init-groups",
                    "--",
                ])
                .arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir("/");
        command
    }

    fn log_file(&self) -> PathBuf {
        self.data.with_extension("log")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Already gone is fine.
            let _ = process.kill();
            let _ = process.wait();
        }
        let _ = std::fs::remove_dir_all(&self.data);
        let _ = std::fs::remove_file(self.log_file());
    }
}

fn newest_programs() -> PathBuf {
    let folders = std::fs::read_dir(DEBIAN_PROGRAMS).unwrap_or_else(|_| {
        panic!("{PROGRAMS} must name the folder of PostgreSQL's programs; {DEBIAN_PROGRAMS} is not there")
    });
    let number = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    let newest = folders
        .flatten()
        .map(|entry| entry.path())
        .max_by_key(|path| number(path));
    newest.expect("a version of PostgreSQL").join("bin")
}
