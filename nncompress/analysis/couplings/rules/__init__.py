"""What each kind of op does to the labels of what it reads; `table` has which rule serves which op."""
