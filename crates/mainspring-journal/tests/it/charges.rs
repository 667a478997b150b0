//! What appends add to accounts: with their events or not at all, and never twice.

use mainspring_session::Amount;

use crate::contract::on_each_store;
use crate::support::{charged, create, finish, go_on, put, refused, spent};

fn amount(usd_nanos: u64, calls: u64) -> Amount {
    Amount { usd_nanos, tokens: usd_nanos * 10, calls }
}

#[test]
fn charges_add_up_by_account() {
    on_each_store(|journal| {
        put(journal, charged(create("a", &["{}"]), "acme", 3)).unwrap();
        put(journal, charged(create("b", &["{}"]), "acme", 4)).unwrap();
        put(journal, charged(go_on("a", 1, &["{}"]), "other\u{1f}2026-11", 5)).unwrap();
        put(journal, finish("b", 1, &["{}"])).unwrap();
        let accounts = ["acme".into(), "nobody".into(), "other\u{1f}2026-11".into()];
        let expected = [amount(7, 2), Amount::default(), amount(5, 1)];
        assert_eq!(journal.spent(&accounts).unwrap(), expected);
    });
}

#[test]
fn a_refused_append_charges_nothing() {
    on_each_store(|journal| {
        put(journal, charged(create("a", &["{}"]), "acme", 3)).unwrap();
        refused(journal, charged(create("a", &["{}"]), "acme", 4));
        refused(journal, charged(go_on("a", 7, &["{}"]), "acme", 4));
        refused(journal, charged(go_on("gone", 1, &["{}"]), "acme", 4));
        assert_eq!(spent(journal, "acme"), amount(3, 1));
    });
}

#[test]
fn one_append_may_charge_several_accounts_and_one_twice() {
    on_each_store(|journal| {
        let mut append = charged(create("a", &["{}"]), "acme", 3);
        append.charges.extend(charged(create("a", &["{}"]), "acme", 4).charges);
        append.charges.extend(charged(create("a", &["{}"]), "other", 5).charges);
        put(journal, append).unwrap();
        assert_eq!((spent(journal, "acme"), spent(journal, "other")), (amount(7, 2), amount(5, 1)));
    });
}
