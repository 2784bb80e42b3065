//! The images of Kafka and PostgreSQL: pulled where that works, made of Debian packages where not.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;

use anyhow::Result;

use crate::build::{debian, kafka, scrap, workshop};
use crate::cache::{self, Layout, key_of};
use crate::engine::Engine;
use crate::engine::images::Settings;
use crate::progress::Progress;
use crate::shell;

/// Kafka: `java` on the path, jars in `/opt/kafka/libs`, a writable `/var/lib/kafka`.
pub const KAFKA_TAG: &str = "kvcluster/kafka:4.1.0";
/// PostgreSQL: programs in `/usr/lib/postgresql/15/bin`, a writable `/var/lib/postgresql`.
pub const POSTGRES_TAG: &str = "kvcluster/postgres:15";

const PUBLIC_KAFKA: &str = "apache/kafka:4.1.0";
const PUBLIC_POSTGRES: &str = "postgres:15-bookworm";
const KAFKA_PACKAGES: [&str; 1] = ["openjdk-17-jre-headless"];
const POSTGRES_PACKAGES: [&str; 1] = ["postgresql-15"];
/// The number of the user in the Kafka image.
const KAFKA_USER: u32 = 1_001;
/// The number of the user in the PostgreSQL image, the same as in the public one.
const POSTGRES_USER: u32 = 999;

/// Makes both images available to the engine.
pub fn ensure(layout: &Layout, progress: &Progress, engine: &Engine, pull: bool) -> Result<()> {
    if pull {
        for (public, tag) in [(PUBLIC_KAFKA, KAFKA_TAG), (PUBLIC_POSTGRES, POSTGRES_TAG)] {
            if !engine.has(tag) {
                let title = format!("pull {public}");
                progress.step(&title, |_| engine.pull_as(public, tag, &layout.log("pull")))?;
            }
        }
        return Ok(());
    }
    kafka_image(layout, progress, engine)?;
    postgres_image(layout, progress, engine)
}

fn kafka_image(layout: &Layout, progress: &Progress, engine: &Engine) -> Result<()> {
    let key = key_of(&[kafka::RECIPE, KAFKA_PACKAGES[0], "1"]);
    if engine.has_built(KAFKA_TAG, &key) {
        return Ok(());
    }
    let jars = kafka::jars(layout, progress)?;
    let base = debian::base(layout, progress)?;
    progress.step("make the Kafka image", |step| {
        let root = workshop(layout, "kafka")?.join("root");
        debian::with_packages(layout, step, &base, &root, &KAFKA_PACKAGES)?;
        let libs = root.join("opt/kafka/libs");
        fs::create_dir_all(&libs)?;
        for jar in fs::read_dir(jars)?.flatten() {
            fs::copy(jar.path(), libs.join(jar.file_name()))?;
        }
        add_user(&root, "kafka", KAFKA_USER, "/var/lib/kafka")?;
        step.detail("import");
        let user = format!("{KAFKA_USER}:{KAFKA_USER}");
        engine.import(
            &root,
            KAFKA_TAG,
            &key,
            &Settings {
                user: &user,
                ..Settings::default()
            },
        )?;
        scrap(layout, "kafka")
    })
}

fn postgres_image(layout: &Layout, progress: &Progress, engine: &Engine) -> Result<()> {
    let key = key_of(&[POSTGRES_PACKAGES[0], "1"]);
    if engine.has_built(POSTGRES_TAG, &key) {
        return Ok(());
    }
    let base = debian::base(layout, progress)?;
    progress.step("make the PostgreSQL image", |step| {
        let root = workshop(layout, "postgres")?.join("root");
        debian::with_packages(layout, step, &base, &root, &POSTGRES_PACKAGES)?;
        cache::remove(&root.join("var/lib/postgresql"))?;
        for file in ["etc/passwd", "etc/group"] {
            let text = fs::read_to_string(root.join(file))?;
            let other: String = text
                .split_inclusive('\n')
                .filter(|line| !line.starts_with("postgres:"))
                .collect();
            cache::write(&root.join(file), other)?;
        }
        add_user(&root, "postgres", POSTGRES_USER, "/var/lib/postgresql")?;
        // Where the server puts its socket unless told otherwise.
        let sockets = root.join("run/postgresql");
        fs::create_dir_all(&sockets)?;
        chown(&sockets, Some(POSTGRES_USER), Some(POSTGRES_USER))?;
        step.detail("import");
        let user = format!("{POSTGRES_USER}:{POSTGRES_USER}");
        let path = "PATH=/usr/lib/postgresql/15/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let settings = Settings {
            user: &user,
            environment: &[path],
            ..Settings::default()
        };
        engine.import(&root, POSTGRES_TAG, &key, &settings)?;
        scrap(layout, "postgres")
    })
}

fn add_user(root: &Path, name: &str, number: u32, home: &str) -> Result<()> {
    let id = number.to_string();
    let root_text = root.to_string_lossy();
    let group = ["chroot", &root_text, "groupadd", "--gid", &id, name];
    shell::output(&mut shell::command(&group))?;
    let user = [
        "chroot", &root_text, "useradd", "--uid", &id, "--gid", &id, "-d", home, "-m", name,
    ];
    shell::output(&mut shell::command(&user)).map(drop)
}
