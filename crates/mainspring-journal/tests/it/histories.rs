//! Random histories of sessions, forks, snapshots and prunings, held against a plain model of what
//! every session's events are, on every store. A failure names its seed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use mainspring_journal::{
    Append, Journal, JournalLimits, JournalOptions, PruneReport, SessionStatus,
};
use mainspring_session::{BlobHash, Epoch, Seq};

use crate::contract::on_each_store_with;
use crate::support::{all_ended, create, fork, go_on, id, prune, put};

/// What a session is: each event's text and owner, the snapshots, and the blobs that it and those
/// before it have named.
#[derive(Clone, Default)]
struct Model {
    events: Vec<(String, u64)>,
    snapshots: Vec<u64>,
    blobs: Vec<(usize, String)>,
    ended: bool,
}

/// Numbers that look random; source: Knuth's MMIX generator.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % end as u64) as usize
    }
}

#[test]
fn random_histories_read_back_as_they_were_written() {
    for seed in 0..12 {
        let limits = JournalLimits {
            prune_sessions_max: 3,
            cached_heads_max: 8,
            ..JournalLimits::default()
        };
        let options = JournalOptions { limits, ..JournalOptions::default() };
        let reports = RefCell::new(Vec::new());
        on_each_store_with(options, |journal| {
            reports.borrow_mut().push(run(journal, seed));
        });
        let reports = reports.into_inner();
        assert!(reports.iter().all(|report| *report == reports[0]), "seed {seed}: {reports:?}");
    }
}

/// Runs a history; returns what its prunings said.
fn run(journal: &Arc<dyn Journal>, seed: u64) -> Vec<PruneReport> {
    let mut numbers = Numbers(seed);
    let mut models: BTreeMap<String, Model> = BTreeMap::new();
    let mut reports = Vec::new();
    for step in 0..150 {
        match numbers.below(20) {
            0 => {
                reports.push(prune(journal, &all_ended()));
                models.retain(|_, model| !model.ended);
                check(journal, &models, seed);
            }
            1..=3 => begin(journal, &mut models, format!("s{step}"), None, &mut numbers),
            4..=7 if !models.is_empty() => {
                let parent = pick(&models, &mut numbers);
                begin(journal, &mut models, format!("s{step}"), Some(parent), &mut numbers);
            }
            _ if !models.is_empty() => {
                let session = pick(&models, &mut numbers);
                let model = models.get_mut(&session).unwrap();
                let base = go_on(&session, model.events.len() as u64, &["{}"]);
                let epoch = Epoch(model.events.last().unwrap().1);
                extend(journal, model, Append { epoch, ..base }, &mut numbers);
            }
            _ => {}
        }
    }
    check(journal, &models, seed);
    reports
}

fn pick(models: &BTreeMap<String, Model>, numbers: &mut Numbers) -> String {
    models.keys().nth(numbers.below(models.len())).unwrap().clone()
}

fn begin(
    journal: &Arc<dyn Journal>,
    models: &mut BTreeMap<String, Model>,
    session: String,
    parent: Option<String>,
    numbers: &mut Numbers,
) {
    let mut model = Model::default();
    let mut append = create(&session, &["{}"]);
    if let Some(parent) = parent {
        let shared = &models[&parent];
        let seq = 1 + numbers.below(shared.events.len());
        model.events = shared.events[..seq].to_vec();
        model.snapshots =
            shared.snapshots.iter().copied().filter(|&end| end <= seq as u64).collect();
        model.blobs = shared.blobs.iter().filter(|(at, _)| *at < seq).cloned().collect();
        let epoch = Epoch(model.events[seq - 1].1 + 1);
        append = Append { epoch, ..fork(&session, &parent, seq as u64, &["{}"]) };
    }
    extend(journal, &mut model, append, numbers);
    models.insert(session, model);
}

/// Appends one to three events to what the model has.
fn extend(journal: &Arc<dyn Journal>, model: &mut Model, append: Append, numbers: &mut Numbers) {
    let session = append.session.to_string();
    let (seq, count) = (model.events.len(), 1 + numbers.below(3));
    let texts: Vec<String> =
        (seq..seq + count).map(|seq| format!("{{\"s\":\"{session}\",\"n\":{seq}}}")).collect();
    let owned = texts.iter().map(|text| (text.clone(), append.epoch.0));
    model.events.extend(owned);
    let snapshot = (numbers.below(3) == 0).then(|| session.clone().into_bytes());
    model.snapshots.extend(snapshot.as_ref().map(|_| (seq + count) as u64));
    let bodies: Vec<String> =
        (0..numbers.below(3)).map(|_| format!("body {}", numbers.below(12))).collect();
    model.blobs.extend(bodies.iter().map(|body| (seq, body.clone())));
    model.ended = numbers.below(3) == 0;
    let status = if model.ended { SessionStatus::Finished } else { SessionStatus::Open };
    let blobs = bodies.iter().map(|body| (BlobHash::of(body.as_bytes()), body.as_bytes().into()));
    let append = Append {
        events: texts.join("\n").into_bytes(),
        count: count as u32,
        snapshot,
        status,
        blobs: blobs.collect(),
        ..append
    };
    put(journal, append).unwrap();
}

fn check(journal: &Arc<dyn Journal>, models: &BTreeMap<String, Model>, seed: u64) {
    let mut listed: Vec<String> = journal
        .sessions(&Default::default())
        .unwrap()
        .iter()
        .map(|head| head.id.to_string())
        .collect();
    listed.sort_unstable();
    assert!(listed.iter().eq(models.keys()), "seed {seed}: {listed:?}");
    let mut numbers = Numbers(seed);
    for (session, model) in models {
        let end = model.events.len();
        let from = numbers.below(end + 1);
        for (from, until) in [(0, None), (from, None), (from, Some(from + numbers.below(5)))] {
            let records = journal
                .load_range(&id(session), Seq(from as u64), until.map(|until| Seq(until as u64)))
                .unwrap();
            let found: Vec<(String, u64)> =
                records.iter().map(|r| (r.json.get().to_owned(), r.epoch.0)).collect();
            let wanted = &model.events[from..until.unwrap_or(end).min(end)];
            assert_eq!(found, wanted, "seed {seed}: {session} from {from} until {until:?}");
        }
        let snapshots = journal.snapshots(&id(session), None).unwrap();
        let found: Vec<u64> = snapshots.iter().map(|snapshot| snapshot.seq.0).collect();
        assert_eq!(found, model.snapshots, "seed {seed}: {session}");
        for (_, body) in &model.blobs {
            let found = journal.blob(&BlobHash::of(body.as_bytes())).unwrap();
            assert_eq!(found.as_deref(), Some(body.as_bytes()), "seed {seed}: {session} {body}");
        }
    }
}
