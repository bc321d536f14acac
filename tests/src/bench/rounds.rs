//! Contenders in turn: A B C A B C …, so that what disturbs the machine for a while disturbs all of them.

use anyhow::{Result, ensure};

use super::report::Row;
use super::sample::{Metric, Value};

/// How often everything is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rounds {
    /// Rounds whose values are thrown away: they fill caches.
    pub warm_up: usize,
    /// Rounds that count.
    pub counted: usize,
}

/// One of those who are compared.
pub trait Contender {
    /// What it is called in every table.
    fn name(&self) -> String;
    /// What is started, word by word, as far as it is the same every time.
    fn command(&self) -> Vec<String>;
    /// Does it once and says what it took.
    ///
    /// # Errors
    /// When it cannot be done: the row tells.
    fn measure(&mut self) -> Result<Vec<Value>>;
}

/// Measures all contenders in turn; one row for each. A sample that fails is counted and named in its row, never
/// replaced by another try.
///
/// # Errors
/// When a contender never succeeds.
pub fn take_turns(contenders: &mut [Box<dyn Contender>], rounds: Rounds) -> Result<Vec<Row>> {
    let mut collected: Vec<Collected> = contenders.iter().map(|_| Collected::default()).collect();
    for round in 0..rounds.warm_up + rounds.counted {
        for (contender, collected) in contenders.iter_mut().zip(&mut collected) {
            let counts = round >= rounds.warm_up;
            let kind = if counts { "round" } else { "warm-up" };
            eprintln!("  {kind} {}: {}", round + 1, contender.name());
            match contender.measure() {
                Ok(values) if counts => collected.take(values),
                Ok(_) => {}
                Err(error) => {
                    eprintln!("    failed: {error:#}");
                    collected.failures.push(format!("{kind} {}: {error:#}", round + 1));
                }
            }
        }
    }
    contenders.iter().zip(collected).map(|(contender, collected)| collected.row(contender.as_ref())).collect()
}

/// Samples of one contender, by quantity in the order of their first appearance.
#[derive(Default)]
struct Collected {
    quantities: Vec<(Value, Vec<f64>)>,
    failures: Vec<String>,
}

impl Collected {
    fn take(&mut self, values: Vec<Value>) {
        for value in values {
            match self.quantities.iter_mut().find(|(known, _)| known.name == value.name) {
                Some((_, samples)) => samples.push(value.value),
                None => self.quantities.push((value.clone(), vec![value.value])),
            }
        }
    }

    fn row(self, contender: &dyn Contender) -> Result<Row> {
        let failures = self.failures;
        ensure!(!self.quantities.is_empty(), "{}: nothing was measured: {failures:?}", contender.name());
        let metrics = self.quantities.into_iter();
        let metrics = metrics.map(|(value, samples)| Metric::new(value.name, value.unit, samples));
        let metrics = metrics.collect::<Result<_>>()?;
        Ok(Row { contender: contender.name(), command: contender.command(), metrics, failures })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use anyhow::bail;

    use super::super::sample::Unit;
    use super::*;

    struct Scripted(&'static str, Rc<RefCell<Vec<&'static str>>>, Vec<Option<f64>>);

    impl Contender for Scripted {
        fn name(&self) -> String {
            self.0.into()
        }
        fn command(&self) -> Vec<String> {
            vec![self.0.into()]
        }
        fn measure(&mut self) -> Result<Vec<Value>> {
            self.1.borrow_mut().push(self.0);
            match self.2.remove(0) {
                Some(value) => Ok(vec![Value::new("time", Unit::Milliseconds, value)]),
                None => bail!("no"),
            }
        }
    }

    #[test]
    fn contenders_alternate_and_warm_ups_do_not_count() {
        let order = Rc::new(RefCell::new(Vec::new()));
        let contender = |name, script: &[Option<f64>]| -> Box<dyn Contender> {
            Box::new(Scripted(name, Rc::clone(&order), script.to_vec()))
        };
        let mut contenders = [
            contender("a", &[Some(9.0), Some(1.0), Some(3.0)]),
            contender("b", &[Some(9.0), None, Some(2.0)]),
        ];
        let rows = take_turns(&mut contenders, Rounds { warm_up: 1, counted: 2 }).unwrap();
        assert_eq!(*order.borrow(), ["a", "b", "a", "b", "a", "b"]);
        assert!((rows[0].metrics[0].median - 2.0).abs() < 1e-9);
        assert_eq!(rows[0].failures.len(), 0);
        assert_eq!(rows[1].metrics[0].samples.len(), 1);
        assert_eq!(rows[1].failures.len(), 1);
    }

    #[test]
    fn one_that_never_succeeds_is_an_error() {
        let order = Rc::new(RefCell::new(Vec::new()));
        let mut contenders: [Box<dyn Contender>; 1] = [Box::new(Scripted("a", order, vec![None]))];
        assert!(take_turns(&mut contenders, Rounds { warm_up: 0, counted: 1 }).is_err());
    }
}
