//! A PostgreSQL store behind a real PgBouncer that hands each transaction to another connection.

use std::sync::Arc;

use mainspring_journal::{Append, AppendMode, Hold, Journal, open};
use mainspring_session::{BlobHash, Epoch};

use crate::server::{Database, Server, node};
use crate::support::{
    Results, all_ended, create, finish, fork, go_on, id, ids, prune, put, texts, with_snapshot,
};

#[test]
fn everything_works_behind_a_pooler_in_transaction_mode() {
    let server = Server::start();
    let answer = server.tell("pooler");
    let port = answer.rsplit(':').next().unwrap().parse().unwrap();
    let database = Database::on(&server);
    let url = database.url_at(port);
    let (a, b) = (open(&url, node("a", 2_000)).unwrap(), open(&url, node("b", 2_000)).unwrap());

    // More at once than the pooler has connections.
    std::thread::scope(|scope| {
        for (n, journal) in [&a, &b, &a, &b, &a, &b].into_iter().enumerate() {
            scope.spawn(move || work(journal, n));
        }
    });
    let (sink, results) = Results::new();
    for n in 0..500 {
        let append = Append { release: true, ..create(&format!("many{n:03}"), &["{}"]) };
        a.append(Append { sink: sink.clone(), ..append });
    }
    let mut stored = 0;
    while stored < 500 {
        let acks = results.recv().unwrap();
        assert!(acks.iter().all(|ack| ack.result.is_ok()));
        stored += acks.len();
    }
    let claimed = b.claim(&["agent".to_owned()], 1_000).unwrap();
    assert_eq!(claimed.len(), 500);
    let names: Vec<_> = claimed.iter().map(|head| head.id.clone()).collect();
    b.release(&names).unwrap();
    assert_eq!(a.claim(&["agent".to_owned()], 2).unwrap().len(), 2);

    assert_eq!(prune(&a, &all_ended()).sessions, 6);
    a.compact().unwrap();
    assert_eq!(a.hold(a.tenure()), Hold::Held);
    a.close().unwrap();
    assert_eq!(b.claim(&["agent".to_owned()], 3).unwrap().len(), 3);
    b.close().unwrap();
}

fn work(journal: &Arc<dyn Journal>, n: usize) {
    let (name, copy) = (format!("s{n}"), format!("fork{n}"));
    let body: Arc<[u8]> = b"the same for all".to_vec().into();
    let blobs = vec![(BlobHash::of(&body), body.clone())];
    put(journal, with_snapshot(Append { blobs, ..create(&name, &["[0]", "[1]"]) })).unwrap();
    for seq in 2..20 {
        put(journal, go_on(&name, seq, &["{}"])).unwrap();
    }
    put(journal, fork(&copy, &name, 1, &["[1]"])).unwrap();
    put(journal, Append { epoch: Epoch(2), ..finish(&copy, 2, &["[2]"]) }).unwrap();
    assert_eq!(texts(journal, &copy), ["[0]", "[1]", "[2]"]);
    let take = AppendMode::TakeOver;
    put(journal, Append { epoch: Epoch(2), mode: take, ..go_on(&name, 20, &["{}"]) }).unwrap();
    assert_eq!(texts(journal, &name).len(), 21);
    assert_eq!(journal.blob(&BlobHash::of(&body)).unwrap().as_deref(), Some(&body[..]));
    assert_eq!(journal.snapshots(&id(&name), None).unwrap().len(), 1);
    assert!(ids(&journal.open_sessions().unwrap()).contains(&name.as_str()));
}
