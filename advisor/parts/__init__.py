"""What methods are made of: how something is attached to a layer, and the forms that several share."""
