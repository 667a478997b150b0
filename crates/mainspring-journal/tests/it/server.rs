//! A PostgreSQL server for all tests of this binary, and a database of its own for each.
//!
//! `tools/postgres_server.py` starts it and ends it when this process is gone, however it ends.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use mainspring_journal::{Journal, JournalLimits, JournalOptions, open};
use tokio_postgres::{NoTls, SimpleQueryMessage};

/// A server that ends with its owner.
pub struct Server {
    child: Child,
    /// `None` once it is to end.
    orders: Mutex<Option<ChildStdin>>,
    answers: Mutex<BufReader<ChildStdout>>,
    port: u16,
}

impl Server {
    /// Starts a server; it is there when this returns.
    pub fn start() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut child = Command::new("python3")
            .args(["-m", "tools.postgres_server"])
            .current_dir(root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut url = String::new();
        output.read_line(&mut url).unwrap();
        let port = url.trim().strip_prefix("postgresql://postgres@127.0.0.1:");
        let port = port.and_then(|rest| rest.strip_suffix("/postgres"));
        let port = port.expect("the server says where it is").parse().unwrap();
        Self { child, orders: Mutex::new(Some(input)), answers: Mutex::new(output), port }
    }

    /// The one that tests share. Who stops or restarts a server has one of its own.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Server> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// Gives an order and waits for the answer; see `tools/postgres_server.py`.
    pub fn tell(&self, order: &str) -> String {
        // Held until the answer is read, so that two orders do not mix.
        let mut answers = self.answers.lock().unwrap();
        writeln!(self.orders.lock().unwrap().as_ref().unwrap(), "{order}").unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        answer.trim().to_owned()
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The end of its orders ends it, and its folder with it.
        if let Ok(orders) = self.orders.get_mut() {
            orders.take();
        }
        let _ = self.child.wait();
    }
}

/// An empty database.
pub struct Database {
    name: String,
    port: u16,
}

impl Database {
    pub fn new() -> Self {
        Self::on(Server::shared())
    }

    pub fn on(server: &Server) -> Self {
        Self::make(server.port(), "template1")
    }

    /// A copy of a database that nobody has open.
    pub fn copy(original: &Self) -> Self {
        // What was just closed may take the server a moment to notice.
        run(
            original.port,
            "postgres",
            &format!(
                "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = '{}'",
                original.name
            ),
        );
        Self::make(original.port, &original.name)
    }

    fn make(port: u16, template: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        run(port, "postgres", &format!("CREATE DATABASE {name} TEMPLATE {template}"));
        Self { name, port }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn url(&self) -> String {
        self.url_at(self.port)
    }

    /// Its address by way of another port: of a pooler, say.
    pub fn url_at(&self, port: u16) -> String {
        format!("postgresql://postgres@127.0.0.1:{port}/{}?sslmode=disable", self.name)
    }

    pub fn open(&self) -> Arc<dyn Journal> {
        self.open_with(JournalOptions::default())
    }

    /// Opens it as the node "test" unless the options say otherwise.
    pub fn open_with(&self, options: JournalOptions) -> Arc<dyn Journal> {
        let node = options.node.clone().or(Some("test".to_owned()));
        open(&self.url(), JournalOptions { node, ..options }).unwrap()
    }

    /// Opens it as a node that is gone soon after it is silent.
    pub fn open_node(&self, name: &str, lease_ms: u64) -> Arc<dyn Journal> {
        self.open_with(node(name, lease_ms))
    }

    /// Runs statements behind the journal's back; gives the values of their rows.
    pub fn sql(&self, text: &str) -> Vec<String> {
        run(self.port, &self.name, text)
    }
}

/// Options of a node.
pub fn node(name: &str, lease_ms: u64) -> JournalOptions {
    let limits = JournalLimits { lease_ms, ..JournalLimits::default() };
    JournalOptions { node: Some(name.to_owned()), limits, ..JournalOptions::default() }
}

impl Drop for Database {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            run(self.port, "postgres", &format!("DROP DATABASE {} WITH (FORCE)", self.name));
        }
    }
}

/// Runs statements as the owner of all; gives the values of their rows, joined by `|`.
pub fn run(port: u16, database: &str, text: &str) -> Vec<String> {
    let url = format!("postgresql://postgres@127.0.0.1:{port}/{database}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let messages = runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
        let driver = tokio::spawn(connection);
        let messages = client.simple_query(text).await.unwrap();
        drop(client);
        driver.await.unwrap().unwrap();
        messages
    });
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            let values: Vec<&str> = (0..row.len()).map(|idx| row.get(idx).unwrap_or("")).collect();
            Some(values.join("|"))
        }
        _ => None,
    });
    rows.collect()
}
