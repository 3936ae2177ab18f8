//! The manager and the server against a model HCA and a plain model of who has what.

mod bed;
mod commitment;
mod hostile;
mod isolation;
mod serving;
