import { Anchor, Box } from "@mantine/core";
import { Link } from "@tanstack/react-router";
import { Compass } from "../parts/icons";
import { Empty } from "../parts/states";

export default function Nowhere() {
  return (
    <Box p="xl" component="main">
      <Empty icon={Compass} title="There is no such page" action={<Anchor component={Link} to="/overview">Go to the overview</Anchor>}>
        The address may have been mistyped, or the page has moved.
      </Empty>
    </Box>
  );
}
