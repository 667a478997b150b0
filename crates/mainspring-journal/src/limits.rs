//! The bounds of a journal: how much it takes at once, keeps waiting and holds in memory.

/// Bounds of a journal. The defaults suit 10,000 live sessions in one process.
#[derive(Debug, Clone)]
pub struct JournalLimits {
    /// Most events in one commit; a single append may have more. Default 4,096.
    pub batch_events_max: u32,
    /// Most bytes in one commit; a single append may have more. Default 1 MiB.
    pub batch_bytes_max: usize,
    /// Most bytes in one append, events and blobs together. Default 64 MiB.
    pub append_bytes_max: usize,
    /// Most bytes that wait to be written; an append that finds none waiting is always taken.
    /// Default 256 MiB.
    pub queue_bytes_max: usize,
    /// Most sessions whose heads are kept in memory, so that no append has to read. Default
    /// 65,536, about 10 MB.
    pub cached_heads_max: usize,
    /// Most sessions in one listing. Default 1,000.
    pub sessions_page_max: u32,
    /// Most sessions that a pruning looks at, and removes, between two commits of appends. Default
    /// 100.
    pub prune_sessions_max: u32,
    /// Most bytes of the database file, without its write-ahead log; `None` for as many as the
    /// disk has. An append past it is refused with `journal_full`.
    pub database_bytes_max: Option<u64>,
    /// Longest wait for another program that holds SQLite's own lock, in milliseconds. Default
    /// 5,000.
    pub busy_ms_max: u64,
    /// How long a process that is gone keeps its sessions, in milliseconds, in a store that several
    /// share. Default 3,000.
    pub lease_ms: u64,
    /// How long a store that cannot be reached is waited for, in milliseconds, before appends and
    /// reads fail, in a store behind a network. Default 60,000.
    pub outage_ms_max: u64,
    /// Most connections for reads and for whatever is no append, in a store behind a network. The
    /// writer and the lease have one more each. Default 4.
    pub connections_max: u32,
}

impl Default for JournalLimits {
    fn default() -> Self {
        Self {
            batch_events_max: 4_096,
            batch_bytes_max: 1 << 20,
            append_bytes_max: 64 << 20,
            queue_bytes_max: 256 << 20,
            cached_heads_max: 65_536,
            sessions_page_max: 1_000,
            prune_sessions_max: 100,
            database_bytes_max: None,
            busy_ms_max: 5_000,
            lease_ms: 3_000,
            outage_ms_max: 60_000,
            connections_max: 4,
        }
    }
}
